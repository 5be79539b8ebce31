//! Copies into a running guest and out of it, and the list of its processes.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail};
use lazyroot_archive::{pack, unpack};
use lazyroot_proto::frame::{HEADER, Header};
use lazyroot_proto::service::{MAX_DATA, Service, ServiceFrame};

use crate::text::printable;
use crate::vm::instance::control;

/// Mode bits that a copy out of a guest does not get: nobody here asked for programs of the guest's that run as their
/// owner.
const SET_ID: u32 = 0o6000;

/// A stream to the agent of the VM in `dir`, with threads in mind that block.
async fn open(dir: &Path, service: &Service) -> Result<UnixStream> {
    let stream = control::open_stream(dir).await?.into_std()?;
    stream.set_nonblocking(false)?;
    (&stream).write_all(&service.encode())?;
    Ok(stream)
}

/// Copies the host's `source` (a file, or a folder with all in it) into a guest, where `cp -a` would put it for `target`.
///
/// # Errors
/// If it cannot be read here, or written there.
pub async fn put(dir: &Path, source: &Path, target: &[u8]) -> Result<()> {
    // Before anything is sent.
    std::fs::symlink_metadata(source).with_context(|| format!("cannot copy {}", source.display()))?;
    let mut stream = open(dir, &Service::Put(target.to_vec())).await?;
    let (source, half) = (source.to_owned(), stream.try_clone()?);
    let sender = thread::spawn(move || {
        let sent = send(&source, &half);
        if sent.is_err() {
            // Without its end the guest keeps nothing of it.
            let _ = half.shutdown(std::net::Shutdown::Both);
        }
        sent
    });
    let answer = tokio::task::spawn_blocking(move || {
        let answer = next_frame(&mut stream);
        // What is not sent yet, nobody wants.
        let _ = stream.shutdown(std::net::Shutdown::Both);
        answer
    });
    let answer = answer.await?;
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the copy panicked"))?;
    match (answer, sent) {
        (Ok(ServiceFrame::Done), _) => Ok(()),
        (Ok(ServiceFrame::Failed(why)), _) => bail!("the guest says: {}", printable(&why)),
        // What went wrong here cut the guest's answer off.
        (_, Err(error)) => Err(error.into()),
        (Err(error), Ok(())) => Err(error).context("the guest went away"),
        (Ok(_), Ok(())) => bail!("the guest broke the protocol"),
    }
}

fn send(source: &Path, stream: &UnixStream) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(MAX_DATA, GuestWriter(stream));
    pack(source, &mut out)?;
    out.flush()?;
    (&mut &*stream).write_all(&ServiceFrame::Data(Vec::new()).encode())
}

/// Copies a guest's `source` to the host, where `cp -a` would put it for `target`.
///
/// # Errors
/// If it cannot be read there, or written here.
pub async fn get(dir: &Path, source: &[u8], target: &Path) -> Result<()> {
    let stream = open(dir, &Service::Get(source.to_vec())).await?;
    let target = target.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut pieces = GuestReader { stream, data: Vec::new(), taken: 0, end: None };
        let unpacked = unpack(BufReader::with_capacity(MAX_DATA, &mut pieces), &target, SET_ID);
        // An archive ends before the guest has sent all of it; one that breaks off ends with the reason.
        if unpacked.is_ok() || pieces.end.is_some() {
            io::copy(&mut pieces, &mut io::sink())?;
        }
        match (pieces.end, unpacked) {
            (Some(Err(why)), _) => bail!("the guest says: {}", printable(&why)),
            (_, unpacked) => unpacked.with_context(|| format!("cannot copy to {}", target.display())),
        }
    })
    .await?
}

/// Has `take` read a guest's upper layer, a stream of [`lazyroot_archive::pack_layer`].
///
/// # Errors
/// If the guest cannot send it, or `take` fails.
pub async fn upper<T: Send + 'static>(
    dir: &Path,
    take: impl FnOnce(&mut dyn Read) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stream = open(dir, &Service::Upper).await?;
    tokio::task::spawn_blocking(move || {
        let mut pieces = GuestReader { stream, data: Vec::new(), taken: 0, end: None };
        take(&mut BufReader::with_capacity(MAX_DATA, Whole(&mut pieces)))
    })
    .await?
}

/// The guest's pieces, whose end is an error unless the guest has said that it is done.
struct Whole<'a>(&'a mut GuestReader);

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (self.0.read(buffer)?, &self.0.end) {
            (0, Some(Err(why))) => Err(io::Error::other(format!("the guest says: {}", printable(why)))),
            (count, _) => Ok(count),
        }
    }
}

/// The guest's processes: a line for each, fields separated by tabs.
///
/// # Errors
/// If the guest does not say.
pub async fn processes(dir: &Path) -> Result<String> {
    let stream = open(dir, &Service::Processes).await?;
    tokio::task::spawn_blocking(move || {
        let mut pieces = GuestReader { stream, data: Vec::new(), taken: 0, end: None };
        let mut text = Vec::new();
        pieces.read_to_end(&mut text)?;
        match pieces.end {
            Some(Err(why)) => bail!("the guest says: {}", printable(&why)),
            _ => Ok(String::from_utf8_lossy(&text).into_owned()),
        }
    })
    .await?
}

/// Bytes as frames for the guest.
struct GuestWriter<'a>(&'a UnixStream);

impl Write for GuestWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(MAX_DATA);
        if len > 0 {
            self.0.write_all(&ServiceFrame::Data(data[..len].to_vec()).encode())?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The guest's frames as bytes.
struct GuestReader {
    stream: UnixStream,
    data: Vec<u8>,
    taken: usize,
    /// How it ended, once it has: done, or why not.
    end: Option<Result<(), String>>,
}

impl Read for GuestReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.data.len() && self.end.is_none() {
            match next_frame(&mut self.stream)? {
                ServiceFrame::Data(data) => {
                    self.data = data;
                    self.taken = 0;
                }
                ServiceFrame::Done => self.end = Some(Ok(())),
                ServiceFrame::Failed(why) => self.end = Some(Err(why)),
            }
        }
        let len = buffer.len().min(self.data.len() - self.taken);
        buffer[..len].copy_from_slice(&self.data[self.taken..][..len]);
        self.taken += len;
        Ok(len)
    }
}

fn next_frame(stream: &mut UnixStream) -> io::Result<ServiceFrame> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let header = Header::decode(&header).map_err(io::Error::other)?;
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload)?;
    ServiceFrame::decode(header.kind, &payload).map_err(io::Error::other)
}

/// A file that `put` leaves in a guest with a mode of its own.
///
/// # Errors
/// If it cannot be written.
pub fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
