//! The FUSE data layer: every object of the image as `ab/cdef...`, the layout that the manifest's redirects name, and
//! the [`IMAGE`], which EROFS is mounted from and reads large objects from.
//!
//! overlayfs asks little of it: LOOKUP of a directory and of a file, READ, and GETATTR. Names and sizes are
//! answered from the object index without asking the host, and never expire, since objects never change.

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;

use fuser::{Errno, FileAttr, FileType, INodeNo};
use lazyroot_proto::{ObjectId, ObjectIndex};

use crate::ahead::page_cache::{self, FIRST_OBJECT, Pages};
use crate::ahead::scan::Scans;
use crate::content::image_file::{ImageFile, Place};
use crate::link::recorder::Stopwatch;
use crate::objects::{Bytes, Objects, ReadError, SMALL};

/// The name of the image file ([`crate::content::image_file`]), in the root.
pub const IMAGE: &str = "image";

const ROOT: u64 = 1;
/// Inodes of the 256 directories, by their byte.
const FIRST_DIR: u64 = 2;
/// The image file's inode: no object has it, there are at most 2^32 of them.
pub const IMAGE_INODE: u64 = 1 << 40;

/// What is answered to the kernel, whatever way it asks.
pub struct DataFs {
    objects: Arc<Objects>,
    image: Arc<ImageFile>,
    pages: Arc<Pages>,
    scans: Arc<OnceLock<Scans>>,
    /// Positions of all small objects in the order of their ids, for listings.
    sorted: OnceLock<Vec<u32>>,
    uid: u32,
    gid: u32,
}

impl DataFs {
    /// Answers with `objects` and the `image`, for what `pages` is the kernel's page cache. Scans are recognised once `scans`
    /// is set.
    pub fn new(objects: Arc<Objects>, image: Arc<ImageFile>, pages: Arc<Pages>, scans: Arc<OnceLock<Scans>>) -> Self {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self { objects, image, pages, scans, sorted: OnceLock::new(), uid, gid }
    }

    /// Lets come what seems to be read after the object at `position`, which the kernel asks for. Returns the batch of a
    /// scan that it lies in.
    fn come_ahead(&self, position: u32) -> Option<(&Scans, Range<u32>)> {
        let step = self.objects.miss(position);
        let scans = self.scans.get()?;
        step.passed.for_each(|position| scans.receive(self.objects.begin_run(position)));
        if let Some(batch) = step.ask.filter(|_| step.scan) {
            scans.fill(batch);
        }
        // Whoever waits for the batch must not be what it waits for: only its first object is left out of it.
        step.within.filter(|batch| batch.start == position).map(|batch| (scans, batch))
    }

    /// Up to `len` bytes at byte `offset` of the object at `position`, as [`Objects::read`]; what seems to be read next
    /// comes ahead.
    fn read_object(&self, position: u32, offset: u64, len: u32) -> Option<Result<Bytes, ReadError>> {
        if self.objects.is_handed_over(position, offset) {
            // No program waits for it, and nothing is known of what comes next.
            return self.objects.read(position, offset, len);
        }
        let stopwatch = Stopwatch::start();
        let scan = self.come_ahead(position);
        if let Some(scans) = self.scans.get() {
            scans.receive(self.objects.follow_run(position, offset, len));
        }
        let read = self.objects.read(position, offset, len);
        if let Some((scans, batch)) = scan {
            scans.hold_for(&batch);
        }
        self.objects.recorder().count(|counters| counters.read.add(stopwatch.elapsed()));
        read
    }

    /// `len` bytes at byte `offset` of the image file; fewer only at its end. `None` if they cannot be had.
    fn read_image(&self, offset: u64, len: u32) -> Option<Bytes> {
        let len = u64::from(len).min(self.image.size().checked_sub(offset)?) as usize;
        let mut joined = Vec::new();
        while joined.len() < len {
            let at = joined.len();
            let part = |left: u64| left.min((len - at) as u64) as usize;
            match self.image.place(offset + at as u64)? {
                Place::Manifest(left) => {
                    joined.resize(at + part(left), 0);
                    self.image.read_manifest(&mut joined[at..], offset + at as u64).ok()?;
                }
                Place::Nothing(left) => joined.resize(at + part(left), 0),
                Place::Object { position, offset, left } => {
                    let part = part(left);
                    let bytes = self.read_object(position, offset, part as u32)?.ok()?;
                    // EROFS asks for blocks of one file at a time, so this is nearly always all.
                    if bytes.len() == len {
                        return Some(bytes);
                    }
                    joined.extend_from_slice(&bytes);
                    // Behind the object's end its last block is zeros.
                    joined.resize(at + part, 0);
                }
            }
        }
        Some(joined.into())
    }

    /// The positions of the small objects in the folder of ids that begin with `byte`.
    fn folder(&self, byte: u8) -> &[u32] {
        let entries = self.objects.index().entries();
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
            _ => (FileType::RegularFile, 0o444, self.objects.index().get(page_cache::position(ino)?)?.1),
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

impl DataFs {
    /// What `name` in the directory `parent` is. The kernel is told of it, and may have content stored for it from here on.
    ///
    /// # Errors
    /// As [`child`].
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<FileAttr, Errno> {
        let stopwatch = Stopwatch::start();
        let ino = child(self.objects.index(), parent, name)?;
        let attr = self.attr(ino).ok_or(Errno::EIO)?;
        if let Some(position) = page_cache::position(ino) {
            // overlayfs looks an object up when a program opens the file: it is about to be read.
            self.come_ahead(position);
            self.objects.expect_opened(position);
            self.pages.enter(position);
            self.objects.recorder().count(|counters| counters.lookup.add(stopwatch.elapsed()));
        }
        Ok(attr)
    }

    /// The kernel has forgotten `ino`.
    pub fn forget(&self, ino: u64) {
        if let Some(position) = page_cache::position(ino) {
            self.pages.forget(position);
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
        positions.iter().take(offset as usize).for_each(|position| self.pages.enter(*position));
        for (number, position) in positions.iter().enumerate().skip(offset as usize) {
            let attr = self.attr(page_cache::inode(*position).0);
            let (Some(attr), Some((id, _))) = (attr, self.objects.index().get(*position)) else { continue };
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
    pub fn read(&self, ino: u64, offset: u64, len: u32) -> Result<Bytes, Errno> {
        if ino == IMAGE_INODE {
            return self.read_image(offset, len).ok_or(Errno::EIO);
        }
        let position = page_cache::position(ino).ok_or(Errno::EISDIR)?;
        let bytes = self.read_object(position, offset, len).and_then(Result::ok).ok_or(Errno::EIO)?;
        if bytes.is_whole() {
            self.objects.drop_small(position);
        }
        Ok(bytes)
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
