//! An object's bytes, checked before they are handed on.

use std::io::Write;

use anyhow::{Context, Result};
use lazyroot_proto::verity;

use super::source::{Object, ObjectError, ObjectSource};

/// Objects up to this many bytes are read and hashed whole; of larger ones the leaves are fetched first, and this
/// much is in memory at a time.
const PIECE: u64 = 4 << 20;

/// Writes the object's bytes to `to`.
///
/// # Errors
/// If the object is missing, damaged (then a part may have been written) or of another size, or `to` fails.
pub(in crate::store) fn copy(source: &dyn ObjectSource, object: &Object, to: &mut dyn Write) -> Result<()> {
    let Object { id, size } = *object;
    let algorithm = id.algorithm();
    if size <= PIECE {
        let mut data = vec![0; size as usize];
        source.read(object, 0, &mut data)?;
        if verity::digest(algorithm, &data) != id {
            return Err(ObjectError::Corrupt(id).into());
        }
        return to.write_all(&data).context("cannot write");
    }
    // Their digest is the object's, which includes its size.
    let leaves = source.leaves(object)?;
    if verity::digest_of_leaves(algorithm, &leaves, size) != Some(id) {
        return Err(ObjectError::Corrupt(id).into());
    }
    let mut piece = vec![0; PIECE as usize];
    let mut offset = 0;
    while offset < size {
        let piece = &mut piece[..PIECE.min(size - offset) as usize];
        source.read(object, offset, piece)?;
        if !verity::range_matches(algorithm, &leaves, offset, piece) {
            return Err(ObjectError::Corrupt(id).into());
        }
        to.write_all(piece).context("cannot write")?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Writes `size` zeros.
///
/// # Errors
/// If `to` fails.
pub(in crate::store) fn zeros(size: u64, to: &mut dyn Write) -> Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size), &mut &mut *to).context("cannot write")?;
    Ok(())
}
