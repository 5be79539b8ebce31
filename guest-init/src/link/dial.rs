//! Connections to the host: opened, and told what they are for.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::frame::{Hello, Request, Role};

use crate::link::frames::{FrameReader, write_capped};
use crate::sys::set_vsock_window;

/// How long one request may take, reconnects included, before it fails: long enough for a host that restarts or
/// wakes from sleep, short enough that a program sees EIO rather than hangs for ever.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Pause between attempts to connect: the host's socket may appear only once the VM runs.
pub const RETRY: Duration = Duration::from_millis(50);

/// Receive window asked of vsock: guest kernels from 6.12.92 on may reset a stream with many small queued
/// packets when the default 256 KiB fill up.
const VSOCK_WINDOW: u64 = 8 << 20;

/// Where the host listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket on this machine.
    Unix(PathBuf),
    /// The hypervisor's host, at this vsock port.
    Vsock(u32),
}

/// Connects, with the receive window that our streams need. Reads wait for ever.
pub fn dial(address: &Address) -> io::Result<File> {
    let stream: OwnedFd = match address {
        Address::Unix(path) => UnixStream::connect(path)?.into(),
        Address::Vsock(port) => {
            let stream = vsock::VsockStream::connect_with_cid_port(vsock::VMADDR_CID_HOST, *port)?;
            set_vsock_window(&stream, VSOCK_WINDOW)?;
            stream.into()
        }
    };
    Ok(File::from(stream))
}

/// As [`dial`], again and again for as long as a request may take: a host that is busy may need longer than vsock waits,
/// which is 2 s.
pub fn dial_patiently(address: &Address) -> io::Result<File> {
    let deadline = Instant::now() + REQUEST_DEADLINE;
    loop {
        match dial(address) {
            Err(_) if Instant::now() + RETRY < deadline => thread::sleep(RETRY),
            outcome => return outcome,
        }
    }
}

/// Says on a new connection what it is for; reads from it wait for ever.
pub fn introduce(stream: File, role: Role) -> io::Result<FrameReader> {
    let stream = Arc::new(stream);
    write_capped(&*stream, &Request::Hello(Hello { role }).encode(0))?;
    Ok(FrameReader::new(stream))
}
