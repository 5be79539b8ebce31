//! The FUSE data layer: every object of the image as `ab/cdef...`, the layout that the manifest's redirects name, and
//! the [`IMAGE`], which EROFS is mounted from and reads large objects from.
//!
//! overlayfs asks little of it: LOOKUP of a directory and of a file, READ, and GETATTR. Names and sizes are
//! answered from the object index without asking the host, and never expire, since objects never change.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use lazyroot_proto::verified::Verified;
use lazyroot_proto::{ObjectId, ObjectIndex};

use crate::ahead::Ahead;
use crate::ahead::page_cache::{self, FIRST_OBJECT};
use crate::content::Content;
use crate::content::error::ReadResult;
use crate::content::image_file::{ImageBytes, ImageFile, Place};
use crate::content::object::{Object, ObjectPart, SMALL};
use crate::fuse::placement::{self, LONG_WORK};
use crate::link::recorder::Stopwatch;

/// The name of the image file ([`crate::content::image_file`]), in the root.
pub const IMAGE: &str = "image";

/// Objects and their sizes never change: the kernel may keep what it knows for ever.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

const ROOT: u64 = 1;
/// Inodes of the 256 directories, by their byte.
const FIRST_DIR: u64 = 2;
/// The image file's inode: no object has it, there are at most 2^32 of them.
pub const IMAGE_INODE: u64 = 1 << 40;

/// What is answered to the kernel, whatever way it asks.
pub struct DataLayer {
    content: Arc<Content>,
    ahead: Arc<Ahead>,
    image: Arc<ImageFile>,
    /// Positions of all small objects in the order of their ids, for listings.
    sorted: OnceLock<Vec<u32>>,
    uid: u32,
    gid: u32,
}

/// Bytes that answer a READ, every one of them verified.
pub enum ReadReply {
    /// Of one object, shared with whatever keeps it, so that nothing is copied on the way to the kernel.
    Object(Verified),
    /// Of the image file, put together.
    Image(ImageBytes),
}

impl std::ops::Deref for ReadReply {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Object(bytes) => bytes,
            Self::Image(bytes) => bytes,
        }
    }
}

impl DataLayer {
    /// Answers with `content` and the `image`, and with what `ahead` has fetched before.
    pub fn new(content: Arc<Content>, ahead: Arc<Ahead>, image: Arc<ImageFile>) -> Self {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self { content, ahead, image, sorted: OnceLock::new(), uid, gid }
    }

    /// Up to `len` bytes at byte `offset` of the object at `position`; what seems to be read next is asked for. `None` if
    /// there is no such object.
    fn read_object(&self, position: u32, offset: u64, len: u32) -> Option<ReadResult> {
        let part = ObjectPart::new(self.content.index(), position, offset, len)?;
        if self.ahead.is_kernel_readahead(&part, offset) {
            // No program waits for it, and nothing is known of what comes next.
            return Some(self.read_part(&part));
        }
        let stopwatch = Stopwatch::start();
        let batch = self.ahead.on_read(&part);
        let read = self.read_part(&part);
        if let Some(batch) = batch {
            self.ahead.wait_for(&batch);
        }
        self.content.recorder().count(|counters| counters.read.add(stopwatch.elapsed()));
        Some(read)
    }

    /// A part of an object, from what was fetched ahead or else from the host.
    fn read_part(&self, part: &ObjectPart) -> ReadResult {
        let stopwatch = Stopwatch::start();
        if let Some(bytes) = self.ahead.read(part, stopwatch) {
            return Ok(bytes);
        }
        if let Object::Large(object) = part.object {
            let blocks = object.blocks_around(&part.bytes);
            // In a scan other threads do the long work, ahead of this one.
            if blocks.end - blocks.start >= LONG_WORK && !self.ahead.is_in_scan(object.position) {
                placement::leave();
            }
        }
        self.content.read(part, stopwatch)
    }

    /// `len` bytes at byte `offset` of the image file; fewer only at its end. `None` if they cannot be had.
    fn read_image(&self, offset: u64, len: u32) -> Option<ReadReply> {
        let len = u64::from(len).min(self.image.size().checked_sub(offset)?) as usize;
        let mut joined = ImageBytes::default();
        while joined.len() < len {
            let at = joined.len();
            let part = |left: u64| left.min((len - at) as u64) as usize;
            match self.image.place(offset + at as u64)? {
                Place::Manifest(left) => joined.push_manifest(&self.image, offset + at as u64, part(left)).ok()?,
                Place::Gap(left) => joined.push_zeros(part(left)),
                Place::Object { position, offset, left } => {
                    let part = part(left);
                    let bytes = self.read_object(position, offset, part as u32)?.ok()?;
                    // EROFS asks for blocks of one file at a time, so this is nearly always all.
                    if bytes.len() == len {
                        return Some(ReadReply::Object(bytes));
                    }
                    joined.push_object(&bytes);
                    // Behind the object's end its last block is zeros.
                    joined.push_zeros(part - bytes.len());
                }
            }
        }
        Some(ReadReply::Image(joined))
    }

    /// The positions of the small objects in the folder of ids that begin with `byte`.
    fn folder(&self, byte: u8) -> &[u32] {
        let entries = self.content.index().entries();
        let id = |position: &u32| &entries[*position as usize].0;
        let sorted = self.sorted.get_or_init(|| {
            // Nobody looks for the others in the data layer.
            let small = |position: &u32| entries[*position as usize].1 <= SMALL;
            let mut positions: Vec<u32> = (0..entries.len() as u32).filter(small).collect();
            positions.sort_unstable_by(|a, b| id(a).as_bytes().cmp(id(b).as_bytes()));
            positions
        });
        let start = sorted.partition_point(|position| id(position).as_bytes()[0] < byte);
        let len = sorted[start..].partition_point(|position| id(position).as_bytes()[0] == byte);
        &sorted[start..start + len]
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            IMAGE_INODE => (FileType::RegularFile, 0o444, self.image.size()),
            ..FIRST_OBJECT => (FileType::Directory, 0o555, 0),
            _ => (FileType::RegularFile, 0o444, self.content.index().get(page_cache::position(ino)?)?.1),
        };
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// The inode of `name` in the directory `parent`.
///
/// # Errors
/// EIO for an object that is not in the index: the manifest names it, so the image is damaged, and ENOENT would
/// make programs believe that the file does not exist. ENOENT for a name that no object has.
fn child(index: &ObjectIndex, parent: u64, name: &[u8]) -> Result<u64, Errno> {
    if parent == ROOT {
        if name == IMAGE.as_bytes() {
            return Ok(IMAGE_INODE);
        }
        let byte = std::str::from_utf8(name).ok().filter(|name| name.len() == 2);
        let byte = byte.and_then(|name| u8::from_str_radix(name, 16).ok()).ok_or(Errno::ENOENT)?;
        return Ok(FIRST_DIR + u64::from(byte));
    }
    let dir = parent.checked_sub(FIRST_DIR).and_then(|byte| u8::try_from(byte).ok());
    let id = dir.and_then(|dir| ObjectId::from_object_path(dir, name)).ok_or(Errno::ENOENT)?;
    let position = index.position(&id).ok_or(Errno::EIO)?;
    Ok(FIRST_OBJECT + u64::from(position))
}

impl DataLayer {
    /// What `name` in the directory `parent` is. The kernel is told of it, and may have content stored for it from here on.
    ///
    /// # Errors
    /// As [`child`].
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<FileAttr, Errno> {
        let stopwatch = Stopwatch::start();
        let ino = child(self.content.index(), parent, name)?;
        let attr = self.attr(ino).ok_or(Errno::EIO)?;
        if let Some(position) = page_cache::position(ino) {
            self.ahead.on_lookup(position);
            self.ahead.page_cache().insert_inode(position);
            self.content.recorder().count(|counters| counters.lookup.add(stopwatch.elapsed()));
        }
        Ok(attr)
    }

    /// The kernel has forgotten `ino`.
    pub fn forget(&self, ino: u64) {
        if let Some(position) = page_cache::position(ino) {
            self.ahead.page_cache().remove_inode(position);
        }
    }

    /// What `ino` is.
    ///
    /// # Errors
    /// ENOENT if nothing has this inode.
    pub fn getattr(&self, ino: u64) -> Result<FileAttr, Errno> {
        self.attr(ino).ok_or(Errno::ENOENT)
    }

    /// Calls `add` with the attributes, the offset behind it and the name of every small object in the directory `ino` from
    /// `offset` on, until it says that there is no room for this one.
    ///
    /// Only the data layer's own server asks, to make the kernel know the objects ([`crate::ahead::scan`]).
    pub fn list(&self, ino: u64, offset: u64, mut add: impl FnMut(&FileAttr, u64, &[u8]) -> bool) {
        let byte = ino.checked_sub(FIRST_DIR).and_then(|byte| u8::try_from(byte).ok());
        let positions = byte.map(|byte| self.folder(byte)).unwrap_or_default();
        // The kernel has taken in what it was told before it asks for what follows.
        let page_cache = self.ahead.page_cache();
        positions.iter().take(offset as usize).for_each(|position| page_cache.insert_inode(*position));
        for (number, position) in positions.iter().enumerate().skip(offset as usize) {
            let attr = self.attr(page_cache::inode(*position).0);
            let (Some(attr), Some((id, _))) = (attr, self.content.index().get(*position)) else { continue };
            let path = id.object_path();
            let name = path.split_once('/').map_or(&*path, |(_, name)| name);
            if !add(&attr, number as u64 + 1, name.as_bytes()) {
                break;
            }
        }
    }

    /// `len` bytes at byte `offset` of `ino`, fewer only at its end.
    ///
    /// # Errors
    /// EISDIR for a directory, EIO for what cannot be had or does not verify. Never ENOENT, never short: the kernel would
    /// show a file that is missing or full of zeros.
    pub fn read(&self, ino: u64, offset: u64, len: u32) -> Result<ReadReply, Errno> {
        if ino == IMAGE_INODE {
            return self.read_image(offset, len).ok_or(Errno::EIO);
        }
        let position = page_cache::position(ino).ok_or(Errno::EISDIR)?;
        let bytes = self.read_object(position, offset, len).and_then(Result::ok).ok_or(Errno::EIO)?;
        if self.content.index().get(position).is_some_and(|(_, size)| size == bytes.len() as u64 && size <= SMALL) {
            self.ahead.on_whole_read(position);
        }
        Ok(ReadReply::Object(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::{Algorithm, verity};

    #[test]
    fn an_object_missing_from_the_index_is_an_error_and_not_a_missing_file() {
        let id = |data: &[u8]| verity::digest(Algorithm::Sha256, data);
        let index = ObjectIndex::new(Algorithm::Sha256, vec![(id(b"here"), 4)]).unwrap();
        let lookup = |id: ObjectId| {
            let path = id.object_path();
            let (dir, name) = path.split_once('/').unwrap();
            child(&index, child(&index, ROOT, dir.as_bytes())?, name.as_bytes())
        };
        let code = |result: Result<u64, Errno>| result.map_err(i32::from);
        assert_eq!(code(lookup(id(b"here"))), Ok(FIRST_OBJECT));
        assert_eq!(code(lookup(id(b"gone"))), Err(libc::EIO));
        for (parent, name) in [(ROOT, "zz"), (ROOT, "abc"), (FIRST_DIR, "abc"), (FIRST_OBJECT, "ab")] {
            assert_eq!(code(child(&index, parent, name.as_bytes())), Err(libc::ENOENT), "{parent} {name}");
        }
    }
}
