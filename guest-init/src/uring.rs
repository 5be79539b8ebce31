//! FUSE over io_uring (Linux 6.14, where `fuse.enable_uring` is set): requests come and replies go through memory that is
//! shared with the kernel, one system call for both, and each is answered on the processor of the program that asks.
//!
//! The kernel has a queue for every processor. Threads that belong to the processor have a ring each, with one entry in
//! the queue: a header and a payload, into which the kernel puts a request and the thread its reply. Interrupts, and what
//! needs no reply, come through [`crate::device`] as ever. Source: Linux,
//! Documentation/filesystems/fuse/fuse-io-uring.rst and fs/fuse/dev_uring.c.
//!
//! `unsafe` is here because nobody but us knows that the memory named to the kernel lives as long as the ring.
#![allow(unsafe_code)]

use std::ops::{Range, RangeInclusive};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::{fs, io, thread};

use fuser::Errno;
use io_uring::{EnterFlags, IoUring, cqueue, opcode::UringCmd80, squeue, types};
use memmap2::MmapMut;
use rustix::thread::sched_getaffinity;

use crate::complain::complain;
use crate::datafs::DataFs;
use crate::fuse_abi::{self, Head, Listing, opcode, u32_at, u64_at};
use crate::objects::LONGEST_READ;
use crate::placement;

/// Threads of a processor. Two at least, so that who waits for the host holds up nobody who needs not; with four, two
/// processors have as many reads in flight as through the device.
const THREADS: RangeInclusive<usize> = 2..=4;
/// Threads of all usable processors together, as far as [`THREADS`] allows. Each keeps a payload of 256 KiB.
const ALL_THREADS: usize = 32;
/// Usable processors at most: their payloads are 32 MiB.
const MOST_USABLE: usize = 64;
/// Processors at most that there may ever be: each has a thread, though not all have requests.
const MOST_POSSIBLE: usize = 512;

/// `FUSE_IO_URING_CMD_REGISTER`: here is an entry, put a request into it.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: here is the reply, put the next request into the entry.
const COMMIT_AND_FETCH: u32 = 2;

/// `struct fuse_uring_req_header`: the request's header and in its place the reply's, the request's first argument, and
/// `struct fuse_uring_ent_in_out`.
const HEADER: usize = 288;
const ARGUMENT: Range<usize> = 128..256;
const COMMIT_ID: usize = 256 + 8;
const PAYLOAD_LEN: usize = 256 + 16;

/// Where the payload begins in an entry's memory: at a page.
const PAYLOAD: usize = 4096;

/// Where `len` is in `struct io_uring_sqe`.
const SQE_LEN: usize = 24;

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

/// Rings for all queues, each with a thread that waits for its work.
///
/// They come first: once kernel and server have agreed about io_uring, the kernel waits for every queue.
pub struct Rings {
    start: Vec<mpsc::Sender<()>>,
}

impl Rings {
    /// Makes them for a mounted `device`, whose requests `fs` will answer. The kernel has not shaken hands yet.
    ///
    /// # Errors
    /// If there are too many processors, or the system allows no io_uring, as sandboxes do, or has no threads or memory for it.
    pub fn open(device: &Arc<OwnedFd>, fs: &Arc<DataFs>) -> io::Result<Self> {
        let (possible, usable) = (processors()?, sched_getaffinity(None)?);
        let usable_count = usable.count() as usize;
        if usable_count > MOST_USABLE || possible > MOST_POSSIBLE {
            return Err(io::Error::other(format!("there are {usable_count} processors, and may be {possible}")));
        }
        let (opened, all_opened) = mpsc::channel();
        let mut start = Vec::new();
        for processor in 0..possible {
            // On a processor that is not there, or not for us, asks nobody but who is allowed there and not here.
            let threads = if usable.is_set(processor) {
                (ALL_THREADS / usable_count).clamp(*THREADS.start(), *THREADS.end())
            } else {
                1
            };
            for _ in 0..threads {
                let (device, fs, opened) = (device.clone(), fs.clone(), opened.clone());
                let (starter, started) = mpsc::channel();
                let serve = move || {
                    placement::settle(processor);
                    let entry = Entry::open(device, processor as u16);
                    // Who wants to know waits for it.
                    let _ = opened.send(entry.as_ref().map(drop).map_err(|error| io::Error::other(error.to_string())));
                    drop(opened);
                    if let (Ok(entry), Ok(())) = (entry, started.recv()) {
                        entry.serve(&fs);
                    }
                };
                thread::Builder::new().name(format!("fuse-{processor}")).spawn(serve)?;
                start.push(starter);
            }
        }
        drop(opened);
        all_opened.iter().collect::<io::Result<()>>()?;
        Ok(Self { start })
    }

    /// Answers from here on, kernel and server having agreed, until the file system is unmounted.
    pub fn start(&self) {
        // Every thread has its ring and waits.
        for starter in &self.start {
            let _ = starter.send(());
        }
    }
}

/// Processors that there may ever be: so many queues the kernel has, and waits for.
fn processors() -> io::Result<usize> {
    // Ranges, such as `0-3`.
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::other(format!("'{possible}' is no list of processors")))
}

fn ring() -> io::Result<Ring> {
    // One thread has the ring to itself, and the kernel's work for it is done when that thread waits.
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1)
}

/// One entry of a queue, with a ring of its own.
struct Entry {
    /// Dropped before the memory that it names.
    ring: Ring,
    device: Arc<OwnedFd>,
    queue: u16,
    /// The header, and from [`PAYLOAD`] on the payload.
    memory: MmapMut,
}

impl Entry {
    /// One for a device whose kernel has not shaken hands.
    ///
    /// # Errors
    /// If FUSE will not have it.
    fn open(device: Arc<OwnedFd>, queue: u16) -> io::Result<Self> {
        let memory = MmapMut::map_anon(PAYLOAD + LONGEST_READ as usize)?;
        let mut entry = Self { ring: ring()?, device, queue, memory };
        // Too early, says FUSE, if the command comes so far. Later, one that did not would leave the kernel waiting.
        match entry.register() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(entry),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("a request before the handshake")),
        }
    }

    /// Answers request after request.
    fn serve(mut self, fs: &DataFs) {
        if let Err(error) = self.register() {
            // FUSE, which has refused the entry, goes on with the device.
            if !is_unmounted(&error) {
                complain(format!("FUSE over io_uring cannot be had: {error}"));
            }
            return;
        }
        loop {
            let commit_id = self.answer(fs);
            match self.commit_and_fetch(commit_id) {
                Ok(()) => {}
                Err(error) if is_unmounted(&error) => return,
                Err(error) => {
                    // The reply is lost: who waits for it gets an error from a server that ends, and nothing from one that stays.
                    complain(format!("FUSE over io_uring: {error}"));
                    std::process::exit(1);
                }
            }
        }
    }

    /// Gives the entry to its queue, and waits for a request.
    fn register(&mut self) -> io::Result<()> {
        let (header, payload) = self.memory.split_at_mut(PAYLOAD);
        let part = |bytes: &mut [u8], len| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
        let parts = [part(header, HEADER), part(payload, LONGEST_READ as usize)];
        let mut command = self.command(REGISTER, 0).addr(Some(parts.as_ptr() as u64)).build();
        // SAFETY: an Entry128 is the kernel's `struct io_uring_sqe` (repr(C)), for whose `len` the crate has no setter here.
        unsafe { (&raw mut command).cast::<u8>().add(SQE_LEN).cast::<u32>().write(parts.len() as u32) };
        self.exchange(&command)
    }

    /// Gives the reply to the request with this commit id, and waits for the next one.
    fn commit_and_fetch(&mut self, commit_id: u64) -> io::Result<()> {
        loop {
            match self.exchange(&self.command(COMMIT_AND_FETCH, commit_id).build()) {
                // It did not come as far as FUSE, which never says that.
                Err(error) if is_passing(&error) => {}
                other => return other,
            }
        }
    }

    fn command(&self, operation: u32, commit_id: u64) -> UringCmd80 {
        // `struct fuse_uring_cmd_req`: flags, the commit id, the queue.
        let mut request = [0; 80];
        request[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        request[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        UringCmd80::new(types::Fd(self.device.as_raw_fd()), operation).cmd(request)
    }

    /// Gives the kernel a command and waits until it has completed: then a request is there.
    fn exchange(&mut self, command: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: iovecs are read in the call that submits the command, and outlive this function; the memory that they name is
        // the mapping's, which outlives the ring.
        unsafe { self.ring.submission().push(command) }.map_err(io::Error::other)?;
        let mut flags = EnterFlags::GETEVENTS;
        // A thread that waits for a program to ask does not wait for a disk. Before Linux 6.15 it is counted so.
        if self.ring.params().is_feature_no_iowait() {
            flags |= EnterFlags::NO_IOWAIT;
        }
        loop {
            let waiting = self.ring.submission().len() as u32;
            // SAFETY: no argument is given.
            let entered = unsafe { self.ring.submitter().enter::<libc::sigset_t>(waiting, 1, flags.bits(), None) };
            if let Some(completed) = self.ring.completion().next() {
                let errno = -completed.result();
                return if errno > 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) };
            }
            entered.map(drop).or_else(|error| if is_passing(&error) { Ok(()) } else { Err(error) })?;
        }
    }

    /// Answers the request in the memory, there. Returns its commit id.
    fn answer(&mut self, fs: &DataFs) -> u64 {
        let (header, payload) = self.memory.split_at_mut(PAYLOAD);
        let (head, commit_id) = (fuse_abi::head(header), u64_at(header, COMMIT_ID));
        let given = u32_at(header, PAYLOAD_LEN) as usize;
        // Who waits for a reply cannot be killed.
        let reply = catch_unwind(AssertUnwindSafe(|| reply(fs, &head, &header[ARGUMENT], payload, given)));
        let reply = reply.unwrap_or(Err(Errno::EIO)).map_err(i32::from);
        fuse_abi::out_header(header, head.unique, reply);
        header[PAYLOAD_LEN..][..4].copy_from_slice(&(reply.unwrap_or(0) as u32).to_ne_bytes());
        commit_id
    }
}

/// Whether it says that the file system is gone, which is how a ring ends.
fn is_unmounted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV))
}

/// Whether the same may well succeed a moment later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// Answers one request: `argument` is its first, the others are the first `given` bytes of `payload`, where the reply goes.
/// Returns the reply's length in bytes.
fn reply(fs: &DataFs, head: &Head, argument: &[u8], payload: &mut [u8], given: usize) -> Result<usize, Errno> {
    match head.opcode {
        opcode::LOOKUP => {
            placement::return_home();
            let name = payload[..given].split(|byte| *byte == 0).next().unwrap_or_default();
            let attr = fs.lookup(head.node, name)?;
            Ok(fuse_abi::entry_out(payload, &attr))
        }
        opcode::GETATTR => Ok(fuse_abi::attr_out(payload, &fs.getattr(head.node)?)),
        opcode::READ => {
            let (offset, size) = fuse_abi::read_in(argument);
            if u64::from(size) < placement::LONG_WORK {
                placement::return_home();
            }
            let bytes = fs.read(head.node, offset, size)?;
            payload[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
        opcode::READDIRPLUS => {
            let (offset, size) = fuse_abi::read_in(argument);
            let mut listing = Listing::new(&mut payload[..size as usize]);
            fs.list(head.node, offset, |attr, next, name| listing.add(attr, next, name));
            Ok(listing.len())
        }
        opcode::OPENDIR => Ok(fuse_abi::open_out(payload)),
        opcode::STATFS => Ok(fuse_abi::statfs_out(payload)),
        opcode::RELEASEDIR | opcode::DESTROY => Ok(0),
        // Of OPEN and FLUSH it tells the kernel never to ask again.
        _ => Err(Errno::ENOSYS),
    }
}
