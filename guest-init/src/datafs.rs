//! The FUSE data layer: every object of the image as `ab/cdef...`, the layout that the manifest's redirects name, and
//! the [`IMAGE`], which EROFS is mounted from and reads large objects from.
//!
//! overlayfs asks little of it: LOOKUP of a directory and of a file, READ, and GETATTR. Names and sizes are
//! answered from the object index without asking the host, and never expire, since objects never change.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session,
    SessionACL,
};
use lazyroot_proto::{ObjectId, ObjectIndex};

use crate::ahead::{Layer, Scans};
use crate::image::{ImageFile, Place};
use crate::objects::{Bytes, LONGEST_READ, Objects, ReadError, SMALL};
use crate::pages::{self, FIRST_OBJECT, Pages};
use crate::prefetch;
use crate::ready::Ready;
use crate::recorder::Stopwatch;

/// Threads that answer the kernel. Each waits for its own reply, so this is also how many reads are in flight.
const THREADS: usize = 8;

/// The least of the scheduler's priorities (nice(2)).
const LOWEST_PRIORITY: i32 = 19;

/// Objects and their sizes never change: the kernel may keep what it knows for ever.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The name of the image file ([`crate::image`]), in the root.
pub const IMAGE: &str = "image";

const ROOT: u64 = 1;
/// Inodes of the 256 directories, by their byte.
const FIRST_DIR: u64 = 2;
/// The image file's inode: no object has it, there are at most 2^32 of them.
const IMAGE_INODE: u64 = 1 << 40;

struct DataFs {
    objects: Arc<Objects>,
    image: Arc<ImageFile>,
    pages: Arc<Pages>,
    scans: Arc<OnceLock<Scans>>,
    /// Positions of all small objects in the order of their ids, for listings.
    sorted: OnceLock<Vec<u32>>,
    uid: u32,
    gid: u32,
}

/// Serves `objects` and the `image` on an opened and mounted `/dev/fuse` descriptor in threads of its own; returns the
/// handle that ends when the file system is unmounted.
///
/// # Errors
/// If the kernel does not shake hands or threads cannot be made.
pub fn serve(objects: Arc<Objects>, image: ImageFile, device: OwnedFd) -> io::Result<Serving> {
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    // A queue of its own for every thread: they do not contend for one lock.
    config.clone_fd = true;
    let pages = Arc::new(Pages::new(objects.index().entries().len()));
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let scans = Arc::<OnceLock<Scans>>::default();
    let image = Arc::new(image);
    let fs = DataFs {
        objects: objects.clone(),
        image: image.clone(),
        pages: pages.clone(),
        scans: scans.clone(),
        sorted: OnceLock::new(),
        uid,
        gid,
    };
    let session = Session::from_fd(fs, device, SessionACL::All, config)?;
    pages.attach(session.notifier());
    let session = session.spawn()?;
    Ok(Serving { session, objects, image, pages, scans })
}

/// A data layer being served.
pub struct Serving {
    session: fuser::BackgroundSession,
    objects: Arc<Objects>,
    image: Arc<ImageFile>,
    pages: Arc<Pages>,
    scans: Arc<OnceLock<Scans>>,
}

impl Serving {
    /// From here on what the image's boot profile names is brought ahead of the programs, into the layer `ready`.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn replay_profile(&self, ready: Arc<Ready>) -> io::Result<()> {
        prefetch::start(self.objects.clone(), self.pages.clone(), ready)
    }

    /// From here on scans are recognised and their objects put where programs find them ahead of the program, with the
    /// help of `layer`, where the kernel sees this data layer.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn read_ahead(&self, layer: Option<Layer>, ready: Arc<Ready>) -> io::Result<()> {
        let scans = Scans::start(self.objects.clone(), self.pages.clone(), layer, ready)?;
        // There is nobody else who sets it.
        let _ = self.scans.set(scans);
        Ok(())
    }

    /// Puts the manifest, as the image file has it, into the page cache, in a thread that gives way to all others. Until it
    /// is there EROFS asks for every block by itself, which a walk through the whole tree would feel.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn store_manifest(&self) -> io::Result<()> {
        let (image, pages) = (self.image.clone(), self.pages.clone());
        let store = move || {
            // Of this thread alone, on Linux. Best effort.
            let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
            let len = image.manifest_len();
            for offset in (0..len).step_by(LONGEST_READ as usize) {
                let mut bytes = vec![0; (len - offset).min(LONGEST_READ.into()) as usize];
                let read = image.read_manifest(&mut bytes, offset);
                if read.is_err() || !pages.store_at(INodeNo(IMAGE_INODE), offset, &bytes) {
                    break;
                }
            }
        };
        thread::Builder::new().name("manifest".into()).spawn(store).map(drop)
    }

    /// Waits until the file system is unmounted.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.session.join();
        self.objects.recorder().tell(self.objects.link());
        self.objects.recorder().close();
        ended
    }

    /// The objects that are served.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }
}

impl DataFs {
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
            _ => (FileType::RegularFile, 0o444, self.objects.index().get(pages::position(ino)?)?.1),
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

impl Filesystem for DataFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // EROFS (before a repair of 2026) takes a read of its file that ends half-way for zeros. An asynchronous one fails as a
        // whole.
        let kernel_is_old = |_| io::Error::other("FUSE has no asynchronous direct reads (Linux 3.10)");
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(kernel_is_old)?;
        // Best effort all: a kernel without one of these is slower, not wrong.
        let _ = config.set_max_readahead(LONGEST_READ);
        let _ = config.set_max_write(LONGEST_READ);
        for flag in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let stopwatch = Stopwatch::start();
        let ino = child(self.objects.index(), parent.0, name.as_bytes());
        let attr = match ino.and_then(|ino| self.attr(ino).ok_or(Errno::EIO)) {
            Ok(attr) => attr,
            Err(error) => return reply.error(error),
        };
        let Some(position) = pages::position(attr.ino.0) else {
            return reply.entry(&FOREVER, &attr, Generation(0));
        };
        // overlayfs looks an object up when a program opens the file: it is about to be read.
        self.come_ahead(position);
        self.objects.expect_opened(position);
        reply.entry(&FOREVER, &attr, Generation(0));
        self.pages.enter(position);
        self.objects.recorder().count(|counters| counters.lookup.add(stopwatch.elapsed()));
    }

    /// Only the data layer's own server asks, to make the kernel know the objects ([`crate::ahead`]).
    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let byte = ino.0.checked_sub(FIRST_DIR).and_then(|byte| u8::try_from(byte).ok());
        let positions = byte.map(|byte| self.folder(byte)).unwrap_or_default();
        // The kernel has taken in what it was told before it asks for what follows.
        positions.iter().take(offset as usize).for_each(|position| self.pages.enter(*position));
        for (number, position) in positions.iter().enumerate().skip(offset as usize) {
            let ino = pages::inode(*position);
            let (Some(attr), Some((id, _))) = (self.attr(ino.0), self.objects.index().get(*position)) else { continue };
            let path = id.object_path();
            let name = path.split_once('/').map_or(&*path, |(_, name)| name);
            if reply.add(ino, number as u64 + 1, name, &FOREVER, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn forget(&self, _request: &Request, ino: INodeNo, _lookups: u64) {
        if let Some(position) = pages::position(ino.0) {
            self.pages.forget(position);
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// ENOSYS tells the kernel once that files need no opening; it never asks again.
    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    /// Nor closing.
    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if ino.0 == IMAGE_INODE {
            return match self.read_image(offset, size) {
                Some(bytes) => reply.data(&bytes),
                None => reply.error(Errno::EIO),
            };
        }
        let Some(position) = pages::position(ino.0) else { return reply.error(Errno::EISDIR) };
        match self.read_object(position, offset, size) {
            Some(Ok(bytes)) => {
                let whole = bytes.is_whole();
                reply.data(&bytes);
                if whole {
                    self.objects.drop_small(position);
                }
            }
            // Never ENOENT, never short: the kernel would show a file that is missing or full of zeros.
            Some(Err(_)) | None => reply.error(Errno::EIO),
        }
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
