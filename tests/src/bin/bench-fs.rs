//! The benchmark's own file systems: an image of the store mounted as lazyroot mounts it (EROFS, FUSE, overlayfs), with
//! content from elsewhere. They show what FUSE itself costs, what a socket adds, and what a naive data plane would.
//!
//! ```text
//! bench-fs content SOCKET IMAGE             answers reads from memory, for the second of these:
//! bench-fs mount memory DIR IMAGE           content is in this process
//! bench-fs mount socket=SOCKET DIR IMAGE    every read is one round trip to another process, and nothing else
//! bench-fs mount naive=SOCKET DIR IMAGE     every read is a request to lazyroot's server, verified, one at a time
//! ```

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use lazyroot::home::Home;
use lazyroot::store::{Image, Store};
use lazyroot_guest::link::{Address, Link, REQUEST_DEADLINE};
use lazyroot_proto::ObjectId;
use lazyroot_proto::frame::MAX_READ;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::verified::{Unverified, Verified};
use lazyroot_proto::verity::{self, LeafHasher};

/// Threads that answer the kernel: as many reads are in flight. More were no faster on two processors.
const THREADS: usize = 8;

/// What the kernel reads ahead at most, in bytes: its own limit, best for the sequential reads that these are a floor of.
const READAHEAD: u32 = 1 << 20;

/// Objects never change.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Up to this many bytes the naive data plane fetches objects whole.
const WHOLE_MAX: u64 = 256 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["content", socket, image] => {
            let content = Arc::new(Memory::load(&resolve(image)?)?);
            let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen at {socket}"))?;
            println!("ready");
            for stream in listener.incoming() {
                let (stream, content) = (stream?, content.clone());
                thread::spawn(move || answer(stream, &content));
            }
            Ok(())
        }
        ["mount", source, dir, image] => mount(source, Path::new(dir), &resolve(image)?),
        _ => bail!("the first lines of this program's source say how it is used"),
    }
}

/// An image and the folder of its objects.
struct Found {
    image: Image,
    objects: PathBuf,
}

fn resolve(image: &str) -> Result<Found> {
    let store = Store::open(&Home::open()?, None)?;
    Ok(Found { image: store.resolve(image)?, objects: store.path().join("objects") })
}

/// Where the bytes of objects come from.
trait Content: Send + Sync {
    /// `len` bytes at byte `offset` of the object at `position` in the index; the range lies inside of it.
    fn read(&self, position: u32, offset: u64, len: u32) -> Result<Cow<'_, [u8]>>;
}

/// All objects, in this process.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn load(found: &Found) -> Result<Self> {
        let read = |(id, _): &(ObjectId, u64)| {
            let path = found.objects.join(id.object_path());
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        found.image.index.load()?.entries().iter().map(read).collect::<Result<_>>().map(Self)
    }

    fn range(&self, position: u32, offset: u64, len: u32) -> Option<&[u8]> {
        self.0.get(position as usize)?.get(offset as usize..)?.get(..len as usize)
    }
}

impl Content for Memory {
    fn read(&self, position: u32, offset: u64, len: u32) -> Result<Cow<'_, [u8]>> {
        self.range(position, offset, len).map(Cow::Borrowed).context("no such range")
    }
}

/// A request on the socket between the two processes: position, length and offset, little-endian.
const ASK: usize = 16;

/// Answers one connection until it ends.
fn answer(mut stream: UnixStream, content: &Memory) {
    let mut ask = [0; ASK];
    while stream.read_exact(&mut ask).is_ok() {
        let word = |at: usize| u32::from_le_bytes(ask[at..at + 4].try_into().expect("four bytes"));
        let offset = u64::from_le_bytes(ask[8..].try_into().expect("eight bytes"));
        let Some(bytes) = content.range(word(0), offset, word(4)) else { return };
        if stream.write_all(bytes).is_err() {
            return;
        }
    }
}

/// All objects in another process, a connection for every thread here.
struct Socket(PathBuf);

thread_local! {
    static CONNECTION: RefCell<Option<UnixStream>> = const { RefCell::new(None) };
}

impl Content for Socket {
    fn read(&self, position: u32, offset: u64, len: u32) -> Result<Cow<'_, [u8]>> {
        CONNECTION.with_borrow_mut(|connection| {
            let stream = match connection {
                Some(stream) => stream,
                None => connection.insert(UnixStream::connect(&self.0)?),
            };
            let mut ask = [0; ASK];
            ask[..4].copy_from_slice(&position.to_le_bytes());
            ask[4..8].copy_from_slice(&len.to_le_bytes());
            ask[8..].copy_from_slice(&offset.to_le_bytes());
            stream.write_all(&ask)?;
            let mut bytes = vec![0; len as usize];
            stream.read_exact(&mut bytes)?;
            Ok(bytes.into())
        })
    }
}

/// lazyroot's server, asked for one thing at a time and only when a program needs it: no requests in flight together,
/// nothing ahead of need, nothing kept but Merkle leaves. Everything is verified.
struct Naive {
    link: Mutex<Link>,
    index: Arc<ObjectIndex>,
    leaves: Mutex<HashMap<u32, Verified>>,
}

impl Naive {
    fn connect(socket: &str, image: &Image) -> Result<Self> {
        let link = Link::connect(Address::Unix(socket.into()), image.id, REQUEST_DEADLINE)?;
        // What a real mount fetches too; it has the digests to check them by.
        let mut manifest = LeafHasher::new(image.id.algorithm());
        link.manifest(|piece| -> Result<()> {
            manifest.update(piece);
            Ok(())
        })?;
        ensure!(manifest.finish().0 == image.id, "the manifest is damaged");
        let index = link.index()?.verify_object(&image.index.id()).context("the index is damaged")?;
        let index = Arc::new(ObjectIndex::from_bytes(&index)?);
        Ok(Self { link: Mutex::new(link), index, leaves: Mutex::default() })
    }

    fn ask<T>(&self, what: impl FnOnce(&Link) -> T) -> T {
        what(&self.link.lock().expect("no panic under the lock"))
    }

    /// The object's Merkle leaves, verified.
    fn leaves(&self, position: u32, id: ObjectId, size: u64) -> Result<Verified> {
        if let Some(leaves) = self.leaves.lock().expect("no panic under the lock").get(&position) {
            return Ok(leaves.clone());
        }
        let mut parts = Vec::new();
        let len = verity::leaves_len(id.algorithm(), size);
        for offset in (0..len).step_by(MAX_READ as usize) {
            let next = (len - offset).min(MAX_READ.into()) as u32;
            parts.push(self.ask(|link| link.redeem(link.request_nodes(id, 0, offset, next)))?);
        }
        let leaves = Unverified::concat(&parts).verify_level(&id, size, 0);
        let leaves = leaves.with_context(|| format!("the leaves of {id} are damaged"))?;
        self.leaves.lock().expect("no panic under the lock").insert(position, leaves.clone());
        Ok(leaves)
    }
}

impl Content for Naive {
    fn read(&self, position: u32, offset: u64, len: u32) -> Result<Cow<'_, [u8]>> {
        let (id, size) = self.index.get(position).context("no such object")?;
        if size <= WHOLE_MAX {
            let data = self.ask(|link| link.read(id, 0, size as u32))?.verify_object(&id);
            let mut data = Vec::from(data.with_context(|| format!("{id} is damaged"))?.into_bytes());
            data.truncate(offset as usize + len as usize);
            return Ok(data.split_off(offset as usize).into());
        }
        let leaves = self.leaves(position, id, size)?;
        // The kernel asks for whole pages, which are the blocks that leaves are of.
        let data = self.ask(|link| link.read(id, offset, len))?.verify_range(id.algorithm(), offset, &leaves);
        Ok(Vec::from(data.with_context(|| format!("{id} is damaged"))?.into_bytes()).into())
    }
}

const ROOT: u64 = 1;
/// Inodes of the 256 directories, by their byte, and behind them those of objects, by their position.
const FIRST_DIR: u64 = 2;
const FIRST_OBJECT: u64 = FIRST_DIR + 256;

/// Objects as `ab/cdef...`, as lazyroot's own FUSE layer shows them.
struct Layer {
    content: Box<dyn Content>,
    index: Arc<ObjectIndex>,
}

impl Layer {
    fn object(&self, ino: u64) -> Option<(u32, u64)> {
        let position = u32::try_from(ino.checked_sub(FIRST_OBJECT)?).ok()?;
        Some((position, self.index.get(position)?.1))
    }

    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let (kind, perm, size) = match self.object(ino) {
            Some((_, size)) => (FileType::RegularFile, 0o444, size),
            None if ino < FIRST_OBJECT => (FileType::Directory, 0o555, 0),
            None => return None,
        };
        let time = UNIX_EPOCH;
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn child(&self, parent: u64, name: &[u8]) -> Option<u64> {
        if parent == ROOT {
            return Some(FIRST_DIR + u64::from(u8::from_str_radix(std::str::from_utf8(name).ok()?, 16).ok()?));
        }
        let id = ObjectId::from_object_path(u8::try_from(parent.checked_sub(FIRST_DIR)?).ok()?, name)?;
        Some(FIRST_OBJECT + u64::from(self.index.position(&id)?))
    }
}

impl Filesystem for Layer {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_readahead(READAHEAD);
        let _ = config.set_max_write(READAHEAD);
        for flag in [InitFlags::FUSE_ASYNC_READ, InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_NO_OPEN_SUPPORT] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent.0, name.as_bytes()).and_then(|ino| self.attr(ino)) {
            Some(attr) => reply.entry(&FOREVER, &attr, Generation(0)),
            None => reply.error(Errno::EIO),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino.0) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
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
        let Some((position, object_size)) = self.object(ino.0) else { return reply.error(Errno::EISDIR) };
        let offset = offset.min(object_size);
        let len = u64::from(size).min(object_size - offset) as u32;
        let read = if len == 0 { Ok(Cow::Borrowed(&[][..])) } else { self.content.read(position, offset, len) };
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => {
                eprintln!("bench-fs: {error:#}");
                reply.error(Errno::EIO);
            }
        }
    }
}

/// Mounts, says so, and stays until it is unmounted.
fn mount(source: &str, dir: &Path, found: &Found) -> Result<()> {
    let content: Box<dyn Content> = match source.split_once('=') {
        None if source == "memory" => Box::new(Memory::load(found)?),
        Some(("socket", socket)) => Box::new(Socket(socket.into())),
        Some(("naive", socket)) => Box::new(Naive::connect(socket, &found.image)?),
        _ => bail!("there is no source {source}"),
    };
    let layers = tempfile::tempdir()?;
    let (metadata, data) = (layers.path().join("metadata"), layers.path().join("data"));
    fs::create_dir(&metadata)?;
    fs::create_dir(&data)?;
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let layer = Layer { content, index: std::sync::Arc::new(found.image.index.load()?) };
    let session = Session::new(layer, &data, &config)?.spawn()?;
    let device = fs::metadata(&data)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), (READAHEAD >> 10).to_string())?;
    let mut erofs = Command::new("mount");
    erofs.args(["-t", "erofs", "-o", "ro,loop"]).arg(&found.image.manifest).arg(&metadata);
    let layered = format!("ro,metacopy=on,redirect_dir=on,lowerdir={}::{}", metadata.display(), data.display());
    let mut overlay = Command::new("mount");
    overlay.args(["-t", "overlay", "-o", &layered, "bench-fs"]).arg(dir);
    let mounted = (|| {
        for command in [&mut erofs, &mut overlay] {
            ensure!(command.status()?.success(), "{command:?} failed");
        }
        Ok(())
    })();
    // The overlay holds its layers; without it they go now.
    for layer in [&metadata, &data] {
        let _ = rustix::mount::unmount(layer, rustix::mount::UnmountFlags::DETACH);
    }
    mounted?;
    drop(layers);
    println!("mounted");
    Ok(session.join()?)
}
