//! The seam between the object server and wherever objects come from.

use std::fs::File;
use std::sync::Arc;

use lazyroot_proto::{ObjectId, Verified};

/// An object as an image's index lists it. Its size is known before anything of it is read, so no source has to be
/// asked for it, and what a source sends can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Its fs-verity digest.
    pub id: ObjectId,
    /// Its size in bytes.
    pub size: u64,
}

/// Why an object could not be read. Its text names the object and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The object is not here.
    #[error("object {0} is not in the store")]
    NotFound(ObjectId),
    /// The object ends before the range does: it was truncated, or the caller's size is wrong.
    #[error("object {id} has no bytes {offset}..{end}: it is damaged; import the image again")]
    Short {
        /// Which object.
        id: ObjectId,
        /// Start of the range in bytes.
        offset: u64,
        /// End of the range in bytes.
        end: u64,
    },
    /// The content does not hash to the id.
    #[error("object {0} is damaged: its content does not match its digest; import the image again")]
    Corrupt(ObjectId),
    /// The system said no.
    #[error("cannot read object {id}: {error}")]
    Io {
        /// Which object.
        id: ObjectId,
        /// The system's error.
        error: std::io::Error,
    },
    /// No upstream could give it.
    #[error("object {id} cannot be had: {why}")]
    Unavailable {
        /// Which object.
        id: ObjectId,
        /// What each upstream said.
        why: String,
    },
}

/// Somewhere objects come from. Calls may block; the server keeps them off the threads that must not.
pub trait ObjectSource: Send + Sync {
    /// Fills `buf` with the object's bytes from `offset` on: all of `buf`, or an error. The content is not
    /// verified here: the guest does that with the digests it trusts.
    fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError>;

    /// Like [`ObjectSource::read`] if that needs no waiting (the bytes are in memory); `false`, with `buf` in an
    /// unknown state, if it might wait or fail.
    fn read_cached(&self, _object: &Object, _offset: u64, _buf: &mut [u8]) -> bool {
        false
    }

    /// The file that has the object's bytes where the object has them, if the byte at `offset` is in memory.
    fn cached_file(&self, _object: &Object, _offset: u64) -> Option<Arc<File>> {
        None
    }

    /// The object's Merkle leaves ([`lazyroot_proto::verity`]), computed once per object and kept. They are those of the
    /// id; whether the object has the size that `object` says, they do not tell.
    fn leaves(&self, object: &Object) -> Result<Verified, ObjectError>;

    /// Fills `buf` with the object's leaves from byte `offset` on, which lie inside them; like [`ObjectSource::read`], not
    /// verified. Those of a very large object need not all be in memory for that.
    fn read_leaves(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        copy_nodes(object, &self.leaves(object)?, offset, buf)
    }
}

/// Fills `buf` from byte `offset` of `nodes`, a level of the object's Merkle tree.
///
/// # Errors
/// If the level is shorter: the object is not what it was taken for.
pub(crate) fn copy_nodes(object: &Object, nodes: &[u8], offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
    let part = nodes.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
    buf.copy_from_slice(part.ok_or(ObjectError::Corrupt(object.id))?);
    Ok(())
}
