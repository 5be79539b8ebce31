//! What the host wants of the guest besides programs: connections to what listens here, copies in and out, the list of
//! processes, the upper layer.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lazyroot_archive::{pack, pack_layer, unpack};
use lazyroot_proto::service::{MAX_DATA, Service, ServiceFrame, Target};

use crate::link::{FrameReader, write_capped};
use crate::{sys, threads};

/// Gives the host a service in the image's `root`, whose changes are in `upper`.
///
/// # Errors
/// If the stream to the host fails. What fails here, the host is told.
pub fn serve(mut frames: FrameReader, service: Service, root: &OwnedFd, upper: Option<&OwnedFd>) -> io::Result<()> {
    sys::enter_root(root)?;
    let host = frames.stream();
    let done = match service {
        Service::Connect(target) => return connect(frames, &target),
        Service::Put(path) => {
            let target = Path::new(std::ffi::OsStr::from_bytes(&path)).to_owned();
            let mut content = HostReader::new(&mut frames);
            let unpacked = unpack(io::BufReader::with_capacity(MAX_DATA, &mut content), &target, 0);
            // An archive ends before the host has sent all of it.
            let copied = unpacked.and_then(|()| io::copy(&mut content, &mut io::sink()));
            copied.map(drop).map_err(|error| named(error, &target))
        }
        Service::Get(path) => {
            let source = Path::new(std::ffi::OsStr::from_bytes(&path));
            let mut out = io::BufWriter::with_capacity(MAX_DATA, HostWriter(&host));
            pack(source, &mut out).and_then(|()| out.flush())
        }
        Service::Processes => processes()
            .and_then(|text| text.as_bytes().chunks(MAX_DATA).try_for_each(|piece| HostWriter(&host).write_all(piece))),
        Service::Upper => match upper {
            Some(upper) => send_upper(upper, &host),
            None => Err(io::Error::other("its root cannot be changed")),
        },
    };
    match done {
        Ok(()) => send(&host, &ServiceFrame::Done),
        Err(error) => {
            send(&host, &ServiceFrame::Failed(error.to_string()))?;
            // To close a stream that the host is still sending on would cut off the answer, too. It hangs up once it has it.
            while frames.read_frame().is_ok() {}
            Ok(())
        }
    }
}

/// Sends the upper layer, to which nobody can write meanwhile where its file system can do that.
fn send_upper(upper: &OwnedFd, host: &fs::File) -> io::Result<()> {
    /// One at a time: the first to end would thaw it under the others.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let _frozen = match sys::freeze(upper) {
        // A tmpfs cannot.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
        frozen => Some(frozen?),
    };
    let mut out = io::BufWriter::with_capacity(MAX_DATA, HostWriter(host));
    // The trailing dot follows the kernel's link to the folder.
    pack_layer(Path::new(&format!("/proc/self/fd/{}/.", upper.as_raw_fd())), &mut out)?;
    out.flush()
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("cannot copy to {}: {error}", path.display()))
}

fn send(host: &fs::File, frame: &ServiceFrame) -> io::Result<()> {
    write_capped(host, &frame.encode())
}

/// Bytes as frames for the host.
struct HostWriter<'a>(&'a fs::File);

impl Write for HostWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(MAX_DATA);
        if len > 0 {
            send(self.0, &ServiceFrame::Data(data[..len].to_vec()))?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The host's frames as bytes.
struct HostReader<'a> {
    frames: &'a mut FrameReader,
    data: Vec<u8>,
    offset: usize,
    at_end: bool,
}

impl<'a> HostReader<'a> {
    fn new(frames: &'a mut FrameReader) -> Self {
        Self { frames, data: Vec::new(), offset: 0, at_end: false }
    }
}

impl Read for HostReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.offset == self.data.len() && !self.at_end {
            self.data = next_data(self.frames)?;
            self.offset = 0;
            self.at_end = self.data.is_empty();
        }
        let len = buffer.len().min(self.data.len() - self.offset);
        buffer[..len].copy_from_slice(&self.data[self.offset..][..len]);
        self.offset += len;
        Ok(len)
    }
}

/// The host's next data; empty at its end.
fn next_data(frames: &mut FrameReader) -> io::Result<Vec<u8>> {
    let (header, payload) = frames.read_frame()?;
    match ServiceFrame::decode(header.kind, &payload).map_err(io::Error::other)? {
        ServiceFrame::Data(data) => Ok(data),
        other => Err(io::Error::other(format!("unexpected in a stream of data: {other:?}"))),
    }
}

/// One end of a connection to something in the guest.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))
                    .map_err(|error| io::Error::new(error.kind(), format!("port {port}: {error}")))?;
                // Pieces are as large as they get: waiting for more would only delay them.
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Target::Unix(path) => {
                let path = Path::new(std::ffi::OsStr::from_bytes(path));
                let stream = UnixStream::connect(path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                Ok(Self::Unix(stream))
            }
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    fn shutdown(&self, how: Shutdown) {
        // Fails if the other end is gone.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(data),
            Self::Unix(stream) => stream.write_all(data),
        }
    }
}

/// Passes bytes on both ways, each until its own end.
fn connect(mut frames: FrameReader, target: &Target) -> io::Result<()> {
    let host = frames.stream();
    let mut socket = match Socket::open(target) {
        Ok(socket) => socket,
        Err(error) => return send(&host, &ServiceFrame::Failed(error.to_string())),
    };
    send(&host, &ServiceFrame::Done)?;
    let mut sink = socket.try_clone()?;
    let inward = threads::start_or_panic("connect", move || {
        loop {
            match next_data(&mut frames) {
                Ok(data) if data.is_empty() => return sink.shutdown(Shutdown::Write),
                Ok(data) if sink.write_all(&data).is_ok() => (),
                // The host is gone, or whoever listened: the other direction ends too.
                _ => return sink.shutdown(Shutdown::Both),
            }
        }
    });
    let mut buffer = vec![0; MAX_DATA];
    let outward = loop {
        // Whatever the error, there is no more to come.
        let len = socket.read(&mut buffer).unwrap_or(0);
        let sent = send(&host, &ServiceFrame::Data(buffer[..len].to_vec()));
        if len == 0 || sent.is_err() {
            break sent;
        }
    };
    if outward.is_err() {
        socket.shutdown(Shutdown::Both);
    }
    let _ = inward.join();
    outward
}

/// What runs: a line for each process with its number, its parent's, user id, state, memory in KiB, processor time in
/// seconds, and its words, separated by tabs (proc_pid_stat(5)).
fn processes() -> io::Result<String> {
    /// The kernel's unit of processor time for programs, USER_HZ, on every architecture of ours.
    const TICKS: u64 = 100;
    let page = rustix::param::page_size() as u64;
    let mut pids: Vec<u32> =
        fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut text = String::new();
    for pid in pids {
        let dir = format!("/proc/{pid}");
        // One that ended meanwhile is left out.
        let (Ok(stat), Ok(meta)) = (fs::read_to_string(format!("{dir}/stat")), fs::metadata(&dir)) else { continue };
        // The name is in parentheses and may hold any; fields follow the last one.
        let (Some(start), Some(end)) = (stat.find('('), stat.rfind(')')) else { continue };
        let (name, fields) = (&stat[start + 1..end], stat[end + 1..].split_ascii_whitespace().collect::<Vec<_>>());
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
        let words = fs::read(format!("{dir}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let words = words.join(" ");
        let words = if words.trim().is_empty() { format!("[{name}]") } else { words.trim().to_owned() };
        let (state, parent) = (fields.first().unwrap_or(&"?"), number(1));
        let (memory, time) = ((number(21) * page) >> 10, (number(11) + number(12)) as f64 / TICKS as f64);
        let words: String = words.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        let _ = writeln!(text, "{pid}\t{parent}\t{}\t{state}\t{memory}\t{time:.2}\t{words}", meta.uid());
    }
    Ok(text)
}
