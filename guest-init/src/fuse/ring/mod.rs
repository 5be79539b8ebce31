//! FUSE over io_uring (Linux 6.14, where `fuse.enable_uring` is set): requests come and replies go through memory that is
//! shared with the kernel, one system call for both, and each is answered on the processor of the program that asks.
//!
//! The kernel has a queue for every processor. Threads that belong to the processor have a ring each, with one entry in
//! the queue: a header and a payload, into which the kernel puts a request and the thread its reply. Interrupts, and what
//! needs no reply, come through [`crate::fuse::device`] as ever. Source: Linux,
//! Documentation/filesystems/fuse/fuse-io-uring.rst and fs/fuse/dev_uring.c.

mod entry;

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::{fs, io};

use fuser::Errno;
use rustix::thread::sched_getaffinity;

use crate::fuse::abi::{self, Head, Listing, opcode};
use crate::fuse::data_layer::DataLayer;
use crate::fuse::placement;
use crate::threads;
use entry::Entry;

/// Threads of a processor. Two at least, so that who waits for the host holds up nobody who needs not; with four, two
/// processors have as many reads in flight as through the device.
const THREADS: RangeInclusive<usize> = 2..=4;
/// Threads of all usable processors together, as far as [`THREADS`] allows. Each keeps a payload of 256 KiB.
const ALL_THREADS: usize = 32;
/// Usable processors at most: their payloads are 32 MiB.
const MOST_USABLE: usize = 64;
/// Processors at most that there may ever be: each has a thread, though not all have requests.
const MOST_POSSIBLE: usize = 512;

/// Rings for all queues, each with a thread that waits for its work.
///
/// They come first: once kernel and server have agreed about io_uring, the kernel waits for every queue.
pub struct Rings {
    starters: Vec<mpsc::Sender<()>>,
}

impl Rings {
    /// Makes them for a mounted `device`, whose requests `layer` will answer. The kernel has not shaken hands yet.
    ///
    /// # Errors
    /// If there are too many processors, or the system allows no io_uring, as sandboxes do, or has no threads or memory for it.
    pub fn open(device: &Arc<OwnedFd>, layer: &Arc<DataLayer>) -> io::Result<Self> {
        let (possible, usable) = (processors()?, sched_getaffinity(None)?);
        let usable_count = usable.count() as usize;
        if usable_count > MOST_USABLE || possible > MOST_POSSIBLE {
            return Err(io::Error::other(format!("there are {usable_count} processors, and may be {possible}")));
        }
        let (report, reports) = mpsc::channel();
        let mut starters = Vec::new();
        for processor in 0..possible {
            // On a processor that is not there, or not for us, asks nobody but who is allowed there and not here.
            let threads = if usable.is_set(processor) {
                (ALL_THREADS / usable_count).clamp(*THREADS.start(), *THREADS.end())
            } else {
                1
            };
            for _ in 0..threads {
                let (device, layer, report) = (device.clone(), layer.clone(), report.clone());
                let (starter, start) = mpsc::channel();
                let serve = move || {
                    placement::settle(processor);
                    let entry = Entry::open(device, processor as u16);
                    // Who wants to know waits for it.
                    let _ = report.send(entry.as_ref().map(drop).map_err(|error| io::Error::other(error.to_string())));
                    drop(report);
                    if let (Ok(entry), Ok(())) = (entry, start.recv()) {
                        entry.serve(|head: &Head, argument: &[u8], payload: &mut [u8], arguments_len| {
                            reply(&layer, head, argument, payload, arguments_len)
                        });
                    }
                };
                threads::start(&format!("fuse-{processor}"), serve)?;
                starters.push(starter);
            }
        }
        drop(report);
        reports.iter().collect::<io::Result<()>>()?;
        Ok(Self { starters })
    }

    /// Answers from here on, kernel and server having agreed, until the file system is unmounted.
    pub fn start(&self) {
        // Every thread has its ring and waits.
        for starter in &self.starters {
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

/// Answers one request: `argument` is its first, the others are the first `arguments_len` bytes of `payload`, where the reply goes.
/// Returns the reply's length in bytes.
fn reply(
    layer: &DataLayer,
    head: &Head,
    argument: &[u8],
    payload: &mut [u8],
    arguments_len: usize,
) -> Result<usize, Errno> {
    match head.opcode {
        opcode::LOOKUP => {
            placement::return_home();
            let name = payload[..arguments_len].split(|byte| *byte == 0).next().unwrap_or_default();
            let attr = layer.lookup(head.node, name)?;
            Ok(abi::entry_out(payload, &attr))
        }
        opcode::GETATTR => Ok(abi::attr_out(payload, &layer.getattr(head.node)?)),
        opcode::READ => {
            let (offset, size) = abi::read_in(argument);
            if u64::from(size) < placement::LONG_WORK {
                placement::return_home();
            }
            let bytes = layer.read(head.node, offset, size)?;
            payload[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
        opcode::READDIRPLUS => {
            let (offset, size) = abi::read_in(argument);
            let mut listing = Listing::new(&mut payload[..size as usize]);
            layer.list(head.node, offset, |attr, next, name| listing.add(attr, next, name));
            Ok(listing.len())
        }
        opcode::OPENDIR => Ok(abi::open_out(payload)),
        opcode::STATFS => Ok(abi::statfs_out(payload)),
        opcode::RELEASEDIR | opcode::DESTROY => Ok(0),
        // Of OPEN and FLUSH it tells the kernel never to ask again.
        _ => Err(Errno::ENOSYS),
    }
}
