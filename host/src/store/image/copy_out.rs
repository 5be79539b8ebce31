//! Copying a part of an image's tree to this machine.
//!
//! The tree may come from anyone, so nothing that is there already is written to or followed: every folder, file and
//! link is made, and one that cannot be made because its name is taken ends the copy. Without root, files belong to
//! whoever copies, and device nodes and the attributes that only root may set are left out and counted.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tree::{Content, Node, Tree};
use super::walk::{Kind, TreeEntry};
use crate::store::objects::source::ObjectSource;

/// What a copy without root could not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Device nodes.
    pub nodes: u64,
    /// Extended attributes.
    pub attributes: u64,
}

/// Copies `from` and all that is below it to `dest`, which must not be there. Hard links within stay hard links.
///
/// # Errors
/// If something is at `dest` or cannot be made, or an object is missing or damaged; what was copied so far stays.
pub fn copy_out(tree: &Tree, source: &dyn ObjectSource, from: &TreeEntry, dest: &Path) -> Result<LeftOut> {
    let mut copy = Copy {
        tree,
        source,
        root: rustix::process::geteuid().is_root(),
        links: HashMap::new(),
        left_out: LeftOut::default(),
    };
    // Folders get their modes and times last: a mode may forbid, and every name made in one changes its time.
    let mut folders: Vec<(PathBuf, TreeEntry)> = Vec::new();
    for entry in tree.walk(&from.path)? {
        let entry = entry?;
        let below = entry.path.strip_prefix(&from.path).unwrap_or(Path::new(""));
        let path = if below.as_os_str().is_empty() { dest.to_owned() } else { dest.join(below) };
        copy.make(&entry, &path).with_context(|| format!("cannot make {}", path.display()))?;
        if entry.is_dir() {
            folders.push((path, entry));
        }
    }
    for (path, entry) in folders.iter().rev() {
        copy.dress(entry, path).with_context(|| format!("cannot finish {}", path.display()))?;
    }
    Ok(copy.left_out)
}

struct Copy<'a> {
    tree: &'a Tree,
    source: &'a dyn ObjectSource,
    root: bool,
    /// By inode, the first copy of a file with several names.
    links: HashMap<u64, PathBuf>,
    left_out: LeftOut,
}

impl Copy<'_> {
    fn make(&mut self, entry: &TreeEntry, path: &Path) -> Result<()> {
        if !entry.is_dir() && entry.links() > 1 {
            if let Some(first) = self.links.get(&entry.inode()) {
                return Ok(fs::hard_link(first, path)?);
            }
            self.links.insert(entry.inode(), path.to_owned());
        }
        match entry.kind() {
            Kind::Directory => return Ok(fs::DirBuilder::new().mode(0o700).create(path)?),
            Kind::File => {
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                let mut file = BufWriter::new(file);
                // A file that is all hole is not read, however large the manifest claims it is.
                if !matches!(self.tree.node_of(entry)?, Node::File { content: Content::Hole, .. }) {
                    self.tree.copy_file(self.source, entry, &mut Sparse(&mut file))?;
                }
                let file: File = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                // Zeros at the end were skipped.
                file.set_len(entry.size())?;
            }
            Kind::Symlink => {
                let target = self.tree.target(entry)?.context("a symbolic link without a target")?;
                std::os::unix::fs::symlink(target, path)?;
            }
            Kind::BlockDevice | Kind::CharacterDevice if !self.root => {
                self.left_out.nodes += 1;
                self.links.remove(&entry.inode());
                return Ok(());
            }
            _ => make_node(path, entry)?,
        }
        self.dress(entry, path)
    }

    /// Owner, attributes, mode and times, in this order: each may undo the one before.
    fn dress(&mut self, entry: &TreeEntry, path: &Path) -> Result<()> {
        if self.root {
            let owner = (Some(Uid::from_raw(entry.uid())), Some(Gid::from_raw(entry.gid())));
            rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        for (name, value) in self.tree.attributes(entry)? {
            match rustix::fs::lsetxattr(path, name.as_slice(), &value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not root, or a file system without attributes.
                Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL) => self.left_out.attributes += 1,
                Err(error) => return Err(error.into()),
            }
        }
        if entry.kind() != Kind::Symlink {
            // Set-user-id bits are for the owner that the image means, not for whoever copies.
            let mode = if self.root { entry.mode() } else { entry.mode() & 0o1777 };
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        let (seconds, nanoseconds) = entry.modified();
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Leaves holes where there are only zeros.
struct Sparse<'a>(&'a mut BufWriter<File>);

/// A hole is worth it from a page on.
const HOLE: usize = 4096;

impl Write for Sparse<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = &data[..data.len().min(HOLE)];
        if piece.len() == HOLE && piece.iter().all(|byte| *byte == 0) {
            io::Seek::seek_relative(self.0, HOLE as i64)?;
        } else {
            self.0.write_all(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(target_os = "linux")]
fn make_node(path: &Path, entry: &TreeEntry) -> Result<()> {
    use rustix::fs::{FileType, Mode};
    let kind = match entry.kind() {
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::CharacterDevice => FileType::CharacterDevice,
        Kind::Socket => FileType::Socket,
        _ => FileType::Fifo,
    };
    let device = entry.device().map_or(0, |(major, minor)| rustix::fs::makedev(major, minor));
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?)
}

/// Other systems have no mknodat in rustix; mkfifo and mknod of their own would be for a tree that only Linux uses.
#[cfg(not(target_os = "linux"))]
fn make_node(path: &Path, _entry: &TreeEntry) -> Result<()> {
    anyhow::bail!("{} is a device, pipe or socket: those are copied on Linux only", path.display())
}
