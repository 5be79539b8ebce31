//! One entry of a queue of FUSE's: the memory that is shared with the kernel, and the commands that hand it to and fro.
//!
//! `unsafe` is here because nobody but us knows that the memory named to the kernel lives as long as the ring.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fuser::Errno;
use io_uring::{EnterFlags, IoUring, cqueue, opcode::UringCmd80, squeue, types};
use memmap2::MmapMut;

use crate::ahead::runs::LONGEST_READ;
use crate::complain::complain;
use crate::fuse::abi::{self, Head, u32_at, u64_at};

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

/// Answers one request: of its arguments the first is the second parameter, and the others are the first bytes of the
/// payload, so many as the last says. The reply goes into the payload; returns its length in bytes.
pub trait Reply: Fn(&Head, &[u8], &mut [u8], usize) -> Result<usize, Errno> {}
impl<F: Fn(&Head, &[u8], &mut [u8], usize) -> Result<usize, Errno>> Reply for F {}

fn ring() -> io::Result<Ring> {
    // One thread has the ring to itself, and the kernel's work for it is done when that thread waits.
    IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(1)
}

/// One entry of a queue, with a ring of its own.
pub struct Entry {
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
    pub fn open(device: Arc<OwnedFd>, queue: u16) -> io::Result<Self> {
        let memory = MmapMut::map_anon(PAYLOAD + LONGEST_READ as usize)?;
        let mut entry = Self { ring: ring()?, device, queue, memory };
        // Too early, says FUSE, if the command comes so far. Later, one that did not would leave the kernel waiting.
        match entry.register() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(entry),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("a request before the handshake")),
        }
    }

    /// Answers request after request with `reply`, until the file system is unmounted.
    pub fn serve(mut self, reply: impl Reply) {
        if let Err(error) = self.register() {
            // FUSE, which has refused the entry, goes on with the device.
            if !is_unmounted(&error) {
                complain(format!("FUSE over io_uring cannot be had: {error}"));
            }
            return;
        }
        loop {
            let commit_id = self.answer(&reply);
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
    fn answer(&mut self, reply: &impl Reply) -> u64 {
        let (header, payload) = self.memory.split_at_mut(PAYLOAD);
        let (head, commit_id) = (abi::head(header), u64_at(header, COMMIT_ID));
        let arguments_len = u32_at(header, PAYLOAD_LEN) as usize;
        // Who waits for a reply cannot be killed.
        let reply = catch_unwind(AssertUnwindSafe(|| reply(&head, &header[ARGUMENT], payload, arguments_len)));
        let reply = reply.unwrap_or(Err(Errno::EIO)).map_err(i32::from);
        abi::out_header(header, head.unique, reply);
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
