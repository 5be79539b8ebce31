//! Exact comparison of two file trees: content, modes, owners, times, extended attributes, hard links, symbolic
//! links and device numbers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Everything about one file but its content.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    /// Zero for directories, whose sizes and link counts are the file system's own affair.
    size: u64,
    links: u64,
    device: u64,
    target: Option<PathBuf>,
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// The first path, in order, that is a hard link to the same file.
    first_link: PathBuf,
}

/// What is under `root`, by path, the root itself included.
fn scan(root: &Path) -> io::Result<BTreeMap<PathBuf, Entry>> {
    let mut paths = vec![PathBuf::new()];
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for child in fs::read_dir(root.join(&dir))? {
            let child = child?;
            let path = dir.join(child.file_name());
            if child.file_type()?.is_dir() {
                pending.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full)?;
        let kind = meta.file_type();
        let first_link = match kind.is_dir() {
            true => path.clone(),
            false => links.entry(meta.ino()).or_insert_with(|| path.clone()).clone(),
        };
        let entry = Entry {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if kind.is_dir() { 0 } else { meta.size() },
            links: if kind.is_dir() { 0 } else { meta.nlink() },
            device: if kind.is_block_device() || kind.is_char_device() { meta.rdev() } else { 0 },
            target: kind.is_symlink().then(|| fs::read_link(&full)).transpose()?,
            attributes: attributes(&full)?,
            first_link,
        };
        entries.insert(path, entry);
    }
    Ok(entries)
}

fn attributes(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut attributes = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(len);
        attributes.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(attributes)
}

/// Compares two trees; returns how many files and bytes of content were the same.
///
/// # Panics
/// At the first difference, naming it.
pub fn assert_same(expected: &Path, found: &Path) -> (usize, u64) {
    let left = scan(expected).expect("the expected tree can be read");
    let right = scan(found).expect("the tree under test can be read");
    for path in left.keys().chain(right.keys()) {
        assert_eq!(left.get(path), right.get(path), "{} (expected, found)", path.display());
    }
    let mut bytes = 0;
    for (path, entry) in &left {
        if entry.mode & 0o170_000 == 0o100_000 && entry.first_link == *path {
            same_content(&expected.join(path), &found.join(path));
            bytes += entry.size;
        }
    }
    (left.len(), bytes)
}

fn same_content(expected: &Path, found: &Path) {
    let (mut left, mut right) = (File::open(expected).expect("readable"), File::open(found).expect("readable"));
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let len = left.read(&mut one).expect("readable");
        right.read_exact(&mut other[..len]).unwrap_or_else(|error| panic!("{}: {error}", found.display()));
        assert!(one[..len] == other[..len], "{} differs from {}", found.display(), expected.display());
        if len == 0 {
            return;
        }
    }
}
