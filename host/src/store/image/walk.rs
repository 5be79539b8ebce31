//! Walking an image's tree, whatever is in it: a manifest may come from anyone who can make an image.
//!
//! What a made-up manifest could do, and what stops it:
//! - folders in a circle, or one folder in many places (thirty levels of two would be a thousand million): a folder
//!   that is met again ends the walk;
//! - folders that share their blocks: there are never more names than the manifest has room for;
//! - paths without end: no more than Linux lets a program name (`PATH_MAX`).

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use erofs_rs::types::Inode;
use erofs_rs::{EroFS, WalkDir};
use rustix::fs::FileType;

use super::manifest::{DAMAGED, Manifest};
use super::overlay::is_whiteout;
use crate::text::printable_name;

/// The longest path in bytes: `PATH_MAX` less the final NUL.
const MAX_PATH: usize = 4095;

/// What an error shows of a path that is too long, in bytes.
const SHOWN_PATH: usize = 100;

/// Bytes of the smallest directory entry: `struct erofs_dirent` and a name of one letter.
const SMALLEST_NAME: u64 = 13;

/// One file that a walk meets.
#[derive(Clone, Debug)]
pub struct TreeEntry {
    /// Its path from the image's root, `/` first.
    pub path: PathBuf,
    /// How many folders below the walk's start it is: 0 is the start itself.
    pub depth: usize,
    pub(in crate::store) inode: Inode,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// The letter that `ls -l` shows.
    pub const fn letter(self) -> char {
        match self {
            Kind::File => '-',
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            Kind::BlockDevice => 'b',
            Kind::CharacterDevice => 'c',
            Kind::Fifo => 'p',
            Kind::Socket => 's',
        }
    }

    /// In words, as JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
            Kind::BlockDevice => "block",
            Kind::CharacterDevice => "character",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
        }
    }
}

impl TreeEntry {
    pub(in crate::store) fn new(path: PathBuf, depth: usize, inode: Inode) -> Self {
        Self { path, depth, inode }
    }

    /// The last part of its path; `/` for the root.
    pub fn name(&self) -> &[u8] {
        self.path.file_name().map_or(b"/", OsStrExt::as_bytes)
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match self.inode.file_type() {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == Kind::File
    }

    /// Whether it is a folder.
    pub fn is_dir(&self) -> bool {
        self.kind() == Kind::Directory
    }

    /// The same for all names of a hard-linked file, different for different files.
    pub fn inode(&self) -> u64 {
        self.inode.id()
    }

    /// Permission bits with set-user-id, set-group-id and sticky: `0o7777` at most.
    pub fn mode(&self) -> u32 {
        self.inode.permissions().mode() & 0o7777
    }

    /// The owner's number.
    pub fn uid(&self) -> u32 {
        self.inode.uid()
    }

    /// The group's number.
    pub fn gid(&self) -> u32 {
        self.inode.gid()
    }

    /// How many names it has.
    pub fn links(&self) -> u32 {
        self.inode.nlink()
    }

    /// A regular file's size in bytes, the length of a symbolic link's target, what a folder's names take here; 0 for
    /// the rest. As the manifest claims: it may be absurd.
    pub fn size(&self) -> u64 {
        self.inode.data_size()
    }

    /// When its content changed: seconds since 1970 and nanoseconds.
    pub fn modified(&self) -> (i64, u32) {
        self.inode.modified_unix()
    }

    /// A device's major and minor number.
    pub fn device(&self) -> Option<(u32, u32)> {
        self.inode.device()
    }
}

/// The files of an image below a path, in manifest order.
pub struct Walk<'a> {
    start: Option<TreeEntry>,
    below: Option<WalkDir<'a, Manifest>>,
    folders: HashSet<u64>,
    /// How many more names there can be.
    left: u64,
}

impl<'a> Walk<'a> {
    pub(in crate::store) fn new(
        erofs: &'a EroFS<Manifest>,
        start: Option<TreeEntry>,
        levels: Option<usize>,
    ) -> Result<Self> {
        let block = erofs.super_block();
        let left = (block.block_count() << block.blk_size_bits) / SMALLEST_NAME;
        let mut folders = HashSet::new();
        let below = match &start {
            // A folder of no bytes has no names, not even its own two dots: composefs writes none, others may.
            Some(entry) if entry.is_dir() && entry.size() > 0 => {
                folders.insert(entry.inode());
                let walk = erofs.walk_dir(entry.path.as_os_str().as_bytes()).context(DAMAGED)?;
                // 0 stands for no bound.
                Some(walk.max_depth(levels.unwrap_or(0)))
            }
            _ => None,
        };
        Ok(Self { start, below, folders, left })
    }

    fn check(&mut self, entry: &TreeEntry) -> Result<()> {
        let damaged = |what: &str| -> Result<()> {
            bail!("the manifest is damaged: {what}, at {}", printable_name(entry.path.as_os_str().as_bytes()));
        };
        if entry.path.as_os_str().len() > MAX_PATH {
            let path = printable_name(&entry.path.as_os_str().as_bytes()[..SHOWN_PATH]);
            bail!("the image has a path of more than {MAX_PATH} bytes, which no program can name: {path}...");
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return damaged("it lists more files than it has room for"),
        }
        if entry.is_dir() && !self.folders.insert(entry.inode()) {
            return damaged("a folder is in two places");
        }
        Ok(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<TreeEntry>;

    fn next(&mut self) -> Option<Result<TreeEntry>> {
        if let Some(start) = self.start.take() {
            return Some(Ok(start));
        }
        loop {
            let entry = match self.below.as_mut()?.next()? {
                Ok(entry) => entry,
                Err(error) => {
                    self.below = None;
                    return Some(Err(anyhow::Error::new(error).context(DAMAGED)));
                }
            };
            if is_whiteout(&entry.inode) {
                continue;
            }
            let path = OsString::from_vec(entry.dir_entry.path().into_vec());
            let entry = TreeEntry::new(path.into(), entry.depth, entry.inode);
            let checked = self.check(&entry);
            if checked.is_err() {
                self.below = None;
            }
            return Some(checked.map(|()| entry));
        }
    }
}
