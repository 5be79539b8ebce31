//! Made-up file content, for images of a chosen size.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::TempDir;

/// Content is made in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// Makes a file of `bytes` bytes in which no two blocks are the same, nor the same as in a file of another `seed`,
/// as in real data.
///
/// # Errors
/// If the file cannot be written.
pub fn write_unique(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    // Words are an odd multiple of a counter, which visits every value once. 2^40 words are 8 TiB.
    let mut word = seed << 40;
    while left > 0 {
        for bytes in piece.chunks_exact_mut(8) {
            // Knuth's multiplicative hashing: 2^64 divided by the golden ratio.
            bytes.copy_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            word += 1;
        }
        let len = left.min(PIECE as u64);
        file.write_all(&piece[..len as usize])?;
        left -= len;
    }
    Ok(())
}

/// Adds `count` files of 1 MiB each to a tree, in a folder `made-up`.
///
/// # Errors
/// If they cannot be written.
pub fn grow(tree: &Path, count: u64) -> io::Result<()> {
    let dir = tree.join("made-up");
    fs::create_dir(&dir)?;
    (0..count).try_for_each(|number| write_unique(&dir.join(number.to_string()), 1 << 20, number + 1))
}

/// A tree of `count` small files, all different, and a large one.
pub fn small_tree(count: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..count {
        fs::write(dir.path().join(format!("f{number}")), small(number)).unwrap();
    }
    write_unique(&dir.path().join("large"), 5_000_001, 7).unwrap();
    // composefs takes no container image without.
    fs::create_dir(dir.path().join("usr")).unwrap();
    dir
}

/// The content of a small file of [`small_tree`].
pub fn small(number: u32) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(5000 + number as usize).collect()
}

/// Content that no other number has.
pub fn numbered(number: u32, len: usize) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(len).collect()
}

/// A folder of files whose content is of these numbers.
pub fn tree_of(numbers: impl IntoIterator<Item = u32>) -> TempDir {
    let dir = TempDir::with_prefix("lr").unwrap();
    for number in numbers {
        fs::write(dir.path().join(number.to_string()), numbered(number, 5000)).unwrap();
    }
    dir
}
