//! One connection to the host: pipelined requests, deadlines, reconnect and replay.
//!
//! # Who reads
//!
//! There is no reader thread. A caller that waits for its reply and finds nobody reading becomes the *leader*:
//! it reads frames, hands other callers theirs, and passes the lead on when its own has come. A lone request
//! thus costs one write and one read on the thread that needs the bytes, with no switch to another thread in
//! between, and still any number of requests are in flight together and complete in any order.
//!
//! # When the host goes away
//!
//! Objects never change, so every request can be asked again. A connection that breaks, or stays silent after
//! a ping, is replaced, and every request that waits is sent anew. A request gives up at its deadline. The
//! kernel then asks again, page by page, so requests right after an outage of that length try once and fail fast.
//! Nothing is done for an idle connection: it costs no wake-ups, and the next request finds out.

pub mod recorder;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use lazyroot_proto::frame::{
    ErrorCode, EventKind, FrameError, HEADER, Header, Hello, HostMessage, MAX_BATCH, MAX_GUEST_WRITE, MAX_READ,
    Metadata, Request, Role, kind,
};
use lazyroot_proto::reads::{Extent, Hint, decode_hints};
use lazyroot_proto::{ObjectId, ObjectIndex};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::sys::append_exactly;

/// How long one request may take, reconnects included, before it fails: long enough for a host that restarts or
/// wakes from sleep, short enough that a program sees EIO rather than hangs for ever.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Silence on a connection with requests in flight after which the host is asked whether it is alive; as much
/// silence again and the connection is replaced. A hypervisor's proxy may never tell us that the server died.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Pause between attempts to connect: the host's socket may appear only once the VM runs.
const RETRY: Duration = Duration::from_millis(50);

/// Time after an outage in which requests make one attempt to connect instead of waiting again: longer than the
/// kernel takes between its attempts to read a page, and than one attempt may take with a silent proxy. A program
/// that tries again later gets the whole deadline.
const FAIL_FAST: Duration = Duration::from_secs(10);

/// Bytes of metadata asked for at a time: while a piece is hashed and kept, the next one comes.
const PIECE: u32 = 256 << 10;

/// Receive buffer for headers and small replies: a full one saves system calls, a larger one only memory.
const BUFFER: usize = 64 << 10;

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

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// The host answered with an error.
    #[error("{message}")]
    Host {
        /// Which kind.
        code: ErrorCode,
        /// The host's words.
        message: String,
    },
    /// No answer within the deadline.
    #[error("no answer from the host within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The host answered with something that makes no sense; asking again would not help.
    #[error("the host broke the protocol: {0}")]
    Protocol(#[from] FrameError),
    /// The host's reply was not as long as what was asked for.
    #[error("the host sent {got} bytes where {wanted} were asked for")]
    Length {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes received.
        got: u64,
    },
}

/// Sizes of an image's metadata, learnt when the session opened.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    manifest: u64,
    index: u64,
    profile: u64,
}

/// A session with the host's object server about one image.
pub struct Link {
    address: Address,
    role: Role,
    deadline: Duration,
    calls: Mutex<Calls>,
    /// Held by the leader; whoever gets it reads.
    reader: Mutex<Option<FrameReader>>,
    /// Held while a frame is written, so that frames never mix.
    writer: Mutex<Option<Arc<File>>>,
}

#[derive(Default)]
struct Calls {
    next_tag: u64,
    waiting: HashMap<u64, Call>,
    sizes: Option<Sizes>,
    /// Until when requests fail fast; renewed by each that does, cleared by a connection.
    unreachable_until: Option<Instant>,
}

struct Call {
    /// The whole request frame, kept for replay.
    frame: Vec<u8>,
    /// Who waits for the reply; nobody yet for one that was asked for ahead of need.
    caller: Option<Thread>,
    reply: Option<Result<Vec<u8>, LinkError>>,
}

/// A range of an object to ask for ahead of need.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The range, by position and blocks.
    pub extent: Extent,
    /// Which object that is.
    pub id: ObjectId,
    /// The range in bytes.
    pub offset: u64,
    /// In bytes, at most [`MAX_READ`].
    pub len: u32,
}

impl Wanted {
    /// The part of `extent` that lies in the object, of `index`, that it names; `None` if that is nothing or too much.
    pub fn new(index: &ObjectIndex, extent: Extent) -> Option<Self> {
        let (id, size) = index.get(extent.position)?;
        let (offset, len) = extent.bytes(size)?;
        let len = u32::try_from(len).ok().filter(|len| *len <= MAX_READ)?;
        Some(Self { extent, id, offset, len })
    }
}

/// Bytes on their way.
#[derive(Debug)]
pub struct Ticket {
    tag: u64,
    /// How many.
    len: u32,
}

fn extend(all: &mut Vec<u8>, piece: &[u8]) -> Result<(), LinkError> {
    all.extend_from_slice(piece);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a lock of the link")
}

impl Link {
    /// Connects and opens a session about the image with this manifest digest. Retries until `deadline` has
    /// passed; later requests have the same time each.
    ///
    /// # Errors
    /// If nobody answers in time, or the host refuses (it does not have the image, or speaks another version).
    pub fn connect(address: Address, manifest: ObjectId, deadline: Duration) -> Result<Self, LinkError> {
        let link = Self {
            address,
            role: Role::Data(manifest),
            deadline,
            calls: Mutex::default(),
            reader: Mutex::default(),
            writer: Mutex::default(),
        };
        link.reconnect(&mut lock(&link.reader), Instant::now() + deadline)?;
        Ok(link)
    }

    /// Hands the image's EROFS manifest to `take`, piece by piece and in order. Not verified.
    ///
    /// # Errors
    /// If a piece does not come, or `take` fails.
    pub fn manifest<E: From<LinkError>>(&self, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.metadata(Metadata::Manifest, take)
    }

    /// The image's object index. Not verified.
    pub fn index(&self) -> Result<Vec<u8>, LinkError> {
        let mut index = Vec::new();
        self.metadata(Metadata::Index, |piece| extend(&mut index, piece))?;
        Ok(index)
    }

    /// The image's boot profile: what to read ahead. A hint that nothing vouches for; empty if there is none.
    pub fn profile(&self) -> Result<Vec<Hint>, LinkError> {
        let mut hints = Vec::new();
        self.metadata(Metadata::Profile, |piece| extend(&mut hints, piece))?;
        Ok(decode_hints(kind::GET, &hints)?)
    }

    fn metadata<E: From<LinkError>>(&self, what: Metadata, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let sizes = lock(&self.calls).sizes.expect("a connected link has had its welcome");
        let size = match what {
            Metadata::Manifest => sizes.manifest,
            Metadata::Index => sizes.index,
            Metadata::Profile => sizes.profile,
        };
        self.in_pieces(size, |offset, len| Request::Get { what, offset, len }, take)
    }

    /// `len` bytes (1 to [`MAX_READ`]) at byte `offset` of an object; the range must lie inside it. Not verified.
    pub fn read(&self, id: ObjectId, offset: u64, len: u32) -> Result<Vec<u8>, LinkError> {
        self.redeem(self.range_ahead(id, offset, len))
    }

    /// Asks for what [`Link::read`] returns, without waiting.
    pub fn range_ahead(&self, id: ObjectId, offset: u64, len: u32) -> Ticket {
        self.ask(&Request::Read { id, offset, len }, len)
    }

    /// Asks for `len` bytes (1 to [`MAX_READ`]) at `offset` of a level of an object's Merkle tree without waiting, as
    /// [`Link::read_ahead`] does.
    pub fn nodes_ahead(&self, id: ObjectId, level: u8, offset: u64, len: u32) -> Ticket {
        self.ask(&Request::Nodes { id, level, offset, len }, len)
    }

    /// Tells the host what happened here at `at` (nanoseconds since the kernel started); `text` may be empty.
    /// Lost if the connection is.
    pub fn event(&self, kind: EventKind, at: u64, text: &str) {
        self.tell(&Request::Event { kind, at, text: text.into() });
    }

    /// Sends what is not answered. Lost if the connection is: what matters is told again, or seen by its effects.
    pub fn tell(&self, request: &Request) {
        let _ = self.send(&request.encode(0));
    }

    /// `size` bytes in pieces, the next of which is always on its way while `take` has one.
    fn in_pieces<E: From<LinkError>>(
        &self,
        size: u64,
        request: impl Fn(u64, u32) -> Request,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let ask = |offset: u64| {
            let len = (size - offset).min(PIECE.into()) as u32;
            self.ask(&request(offset, len), len)
        };
        let mut offsets = (0..size).step_by(PIECE as usize);
        let mut coming = offsets.next().map(ask);
        while let Some(ticket) = coming {
            coming = offsets.next().map(ask);
            let taken = self.redeem(ticket).map_err(E::from).and_then(|piece| take(&piece));
            if let Err(error) = taken {
                coming.into_iter().for_each(|ticket| self.forget(ticket));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Asks for ranges of objects without waiting: each reply is taken with [`Link::redeem`], or given up with
    /// [`Link::forget`].
    pub fn read_ahead(&self, wanted: &[Wanted]) -> Vec<Ticket> {
        wanted.chunks(MAX_BATCH).flat_map(|batch| self.read_list(batch)).collect()
    }

    fn read_list(&self, wanted: &[Wanted]) -> Vec<Ticket> {
        let first_tag = {
            let mut calls = lock(&self.calls);
            let first_tag = calls.next_tag + 1;
            for (tag, wanted) in (first_tag..).zip(wanted) {
                // On a new connection each is asked for by itself: some may have been answered.
                let frame = Request::Read { id: wanted.id, offset: wanted.offset, len: wanted.len }.encode(tag);
                calls.waiting.insert(tag, Call { frame, caller: None, reply: None });
            }
            calls.next_tag += wanted.len() as u64;
            first_tag
        };
        let extents = wanted.iter().map(|wanted| wanted.extent).collect();
        // A failed write shows up as a failed read, which replays what was asked.
        let _ = self.send(&Request::ReadList(extents).encode(first_tag));
        (first_tag..).zip(wanted).map(|(tag, wanted)| Ticket { tag, len: wanted.len }).collect()
    }

    /// Takes in what was received together with earlier replies, without waiting.
    pub fn take_in(&self) {
        if let Ok(mut reader) = self.reader.try_lock() {
            while let Some((header, payload)) = reader.as_mut().and_then(FrameReader::buffered_frame) {
                self.dispatch(None, header, payload);
            }
            drop(reader);
            self.pass_the_lead_on();
        }
    }

    /// How many of these, from the first on, have come: so many can be redeemed without waiting.
    pub fn have_come<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) -> usize {
        let calls = lock(&self.calls);
        let has_come = |ticket: &&Ticket| calls.waiting.get(&ticket.tag).is_some_and(|call| call.reply.is_some());
        tickets.take_while(has_come).count()
    }

    /// Waits for what a ticket stands for. Not verified.
    pub fn redeem(&self, ticket: Ticket) -> Result<Vec<u8>, LinkError> {
        let come = match lock(&self.calls).waiting.entry(ticket.tag) {
            Entry::Occupied(call) if call.get().reply.is_some() => call.remove().reply,
            Entry::Occupied(mut call) => {
                call.get_mut().caller = Some(thread::current());
                None
            }
            Entry::Vacant(_) => None,
        };
        let data = match come {
            Some(reply) => reply?,
            None => self.finish(ticket.tag)?,
        };
        if data.len() != ticket.len as usize {
            return Err(LinkError::Length { wanted: ticket.len.into(), got: data.len() as u64 });
        }
        Ok(data)
    }

    /// Gives up what was asked for so; it may be on its way already.
    pub fn forget(&self, ticket: Ticket) {
        lock(&self.calls).waiting.remove(&ticket.tag);
    }

    /// Sends a request for `len` bytes, and waits for nothing.
    fn ask(&self, request: &Request, len: u32) -> Ticket {
        let (tag, frame) = {
            let mut calls = lock(&self.calls);
            calls.next_tag += 1;
            let tag = calls.next_tag;
            let frame = request.encode(tag);
            calls.waiting.insert(tag, Call { frame: frame.clone(), caller: None, reply: None });
            (tag, frame)
        };
        // A failed write shows up as a failed read, which replays this request.
        let _ = self.send(&frame);
        Ticket { tag, len }
    }

    /// Waits for a reply, leading the reading if nobody else does, and passes the lead on.
    fn finish(&self, tag: u64) -> Result<Vec<u8>, LinkError> {
        let reply = self.wait(tag, Instant::now() + self.deadline);
        lock(&self.calls).waiting.remove(&tag);
        self.pass_the_lead_on();
        reply
    }

    /// Wakes one who waits for a reply, to read: perhaps nobody else does any more.
    fn pass_the_lead_on(&self) {
        let waits = |call: &Call| call.caller.clone().filter(|_| call.reply.is_none());
        let next = lock(&self.calls).waiting.values().find_map(waits);
        if let Some(next) = next {
            next.unpark();
        }
    }

    fn take_reply(&self, tag: u64) -> Option<Result<Vec<u8>, LinkError>> {
        lock(&self.calls).waiting.get_mut(&tag)?.reply.take()
    }

    fn wait(&self, tag: u64, deadline: Instant) -> Result<Vec<u8>, LinkError> {
        let mut asked = false;
        loop {
            if let Some(reply) = self.take_reply(tag) {
                return reply;
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(LinkError::Deadline(self.deadline));
            }
            let Ok(mut reader) = self.reader.try_lock() else {
                // The leader unparks us with our reply, or to take over; the time-out is the deadline's.
                thread::park_timeout(deadline - now);
                continue;
            };
            // The reply may have come between the look and the lock.
            if let Some(reply) = self.take_reply(tag) {
                return reply;
            }
            match reader.as_mut().map(FrameReader::read_frame) {
                Some(Ok((header, payload))) => {
                    asked = false;
                    if let Some(reply) = self.dispatch(Some(tag), header, payload) {
                        return reply;
                    }
                }
                Some(Err(error)) if is_timeout(&error) && !asked => {
                    asked = true;
                    let _ = self.send(&Request::Ping.encode(0));
                }
                // Broken, silent, or not there at all.
                Some(Err(_)) | None => {
                    asked = false;
                    self.reconnect(&mut reader, deadline)?;
                }
            }
        }
    }

    /// Hands a frame to the call that it answers; returns it if that is the caller's own.
    fn dispatch(&self, own: Option<u64>, header: Header, payload: Vec<u8>) -> Option<Result<Vec<u8>, LinkError>> {
        let reply = match header.kind {
            // Without a copy: by far the most frequent, and the longest.
            kind::DATA => Ok(payload),
            other => match HostMessage::decode(other, &payload) {
                Ok(HostMessage::Error { code, message }) => Err(LinkError::Host { code, message }),
                Ok(HostMessage::Pong) => return None,
                Ok(_) => Err(FrameError::UnknownKind(other).into()),
                Err(error) => Err(error.into()),
            },
        };
        if Some(header.tag) == own {
            return Some(reply);
        }
        // No such call: its deadline has passed, or it was answered on the connection before.
        if let Some(call) = lock(&self.calls).waiting.get_mut(&header.tag) {
            call.reply = Some(reply);
            if let Some(caller) = &call.caller {
                caller.unpark();
            }
        }
        None
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        match &*lock(&self.writer) {
            Some(stream) => write_capped(&**stream, frame),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Replaces the connection and sends every waiting request again.
    fn reconnect(&self, reader: &mut Option<FrameReader>, deadline: Instant) -> Result<(), LinkError> {
        *reader = None;
        *lock(&self.writer) = None;
        let started = Instant::now();
        let unreachable = lock(&self.calls).unreachable_until.is_some_and(|until| started < until);
        let deadline = if unreachable { started } else { deadline };
        loop {
            match self.open_session() {
                Ok((fresh, sizes)) => {
                    // Nobody writes between here and the end of the replay: a request made meanwhile waits
                    // for the writer and is in `waiting` already, so it may be sent twice, never zero times.
                    let mut writer = lock(&self.writer);
                    let mut calls = lock(&self.calls);
                    calls.sizes = Some(sizes);
                    calls.unreachable_until = None;
                    let replayed = calls
                        .waiting
                        .values()
                        .filter(|call| call.reply.is_none())
                        .try_for_each(|call| write_capped(&*fresh.stream, &call.frame));
                    if replayed.is_ok() {
                        *writer = Some(fresh.stream.clone());
                        *reader = Some(fresh);
                        return Ok(());
                    }
                }
                Err(SessionError::Refused(error)) => return Err(error),
                Err(SessionError::Unreachable) => (),
            }
            let now = Instant::now();
            if now + RETRY >= deadline {
                // Not after a short try at a request's end, which says little about the next one's chances.
                if unreachable || now - started >= self.deadline / 2 {
                    lock(&self.calls).unreachable_until = Some(now + FAIL_FAST);
                }
                return Err(LinkError::Deadline(self.deadline));
            }
            thread::sleep(RETRY);
        }
    }

    fn open_session(&self) -> Result<(FrameReader, Sizes), SessionError> {
        let unreachable = |_| SessionError::Unreachable;
        let stream = Arc::new(dial(&self.address).map_err(unreachable)?);
        set_socket_timeout(&stream, Timeout::Recv, Some(HEARTBEAT)).map_err(|error| unreachable(error.into()))?;
        let hello = Request::Hello(Hello { role: self.role.clone() });
        write_capped(&*stream, &hello.encode(0)).map_err(unreachable)?;
        let mut reader = FrameReader::new(stream);
        // A hypervisor's proxy may accept for a server that is not there: only a welcome counts.
        let (header, payload) = reader.read_frame().map_err(unreachable)?;
        match HostMessage::decode(header.kind, &payload) {
            Ok(HostMessage::Welcome { manifest_size, index_size, profile_size }) => {
                Ok((reader, Sizes { manifest: manifest_size, index: index_size, profile: profile_size }))
            }
            Ok(HostMessage::Error { code, message }) => Err(SessionError::Refused(LinkError::Host { code, message })),
            Ok(_) => Err(SessionError::Refused(FrameError::UnknownKind(header.kind).into())),
            Err(error) => Err(SessionError::Refused(error.into())),
        }
    }
}

enum SessionError {
    /// Worth another try.
    Unreachable,
    /// The host said no.
    Refused(LinkError),
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Connects, with the receive window that our streams need. Reads wait for ever.
pub fn dial(address: &Address) -> io::Result<File> {
    let stream: OwnedFd = match address {
        Address::Unix(path) => UnixStream::connect(path)?.into(),
        Address::Vsock(port) => {
            let stream = vsock::VsockStream::connect_with_cid_port(vsock::VMADDR_CID_HOST, *port)?;
            crate::sys::set_vsock_window(&stream, VSOCK_WINDOW)?;
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

/// Writes all of `data` in pieces of at most [`MAX_GUEST_WRITE`] bytes (see there why).
pub fn write_capped(mut stream: impl Write, data: &[u8]) -> io::Result<()> {
    data.chunks(MAX_GUEST_WRITE).try_for_each(|piece| stream.write_all(piece))
}

/// Takes frames off a stream, several small ones per system call.
pub struct FrameReader {
    stream: Arc<File>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameReader {
    /// The stream, to write to.
    pub fn stream(&self) -> Arc<File> {
        self.stream.clone()
    }

    /// A reader of `stream`, from its next byte on.
    pub fn new(stream: Arc<File>) -> Self {
        Self { stream, buffer: vec![0; BUFFER].into(), start: 0, end: 0 }
    }

    /// The next frame. A time-out before its first byte may be tried again; any other error is final for the
    /// stream, a time-out inside a frame included.
    pub fn read_frame(&mut self) -> io::Result<(Header, Vec<u8>)> {
        while self.end - self.start < HEADER {
            if let Err(error) = self.fill() {
                let clean = self.start == self.end && is_timeout(&error);
                return Err(if clean { error } else { io::ErrorKind::UnexpectedEof.into() });
            }
        }
        let header = self.buffer[self.start..][..HEADER].try_into().expect("HEADER bytes");
        let header = Header::decode(header).map_err(io::Error::other)?;
        self.start += HEADER;
        let payload = self.read_payload(header.len as usize).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        Ok((header, payload))
    }

    /// The next frame, if all of it was received together with an earlier one.
    fn buffered_frame(&mut self) -> Option<(Header, Vec<u8>)> {
        let (header, payload) = self.buffer[self.start..self.end].split_first_chunk::<HEADER>()?;
        let whole = Header::decode(header).is_ok_and(|header| header.len as usize <= payload.len());
        if whole { self.read_frame().ok() } else { None }
    }

    fn read_payload(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut payload = Vec::with_capacity(len);
        let buffered = len.min(self.end - self.start);
        payload.extend_from_slice(&self.buffer[self.start..][..buffered]);
        self.start += buffered;
        if len - buffered >= BUFFER {
            append_exactly(&self.stream, &mut payload, len - buffered)?;
        }
        while payload.len() < len {
            self.fill()?;
            let take = (len - payload.len()).min(self.end - self.start);
            payload.extend_from_slice(&self.buffer[self.start..][..take]);
            self.start += take;
        }
        Ok(payload)
    }

    /// Reads more, at least one byte.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match (&*self.stream).read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Records the size of every write.
    struct Sizes(Vec<usize>);

    impl Write for &mut Sizes {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.push(data.len());
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_write_is_longer_than_vhost_device_vsock_can_take() {
        let mut sizes = Sizes(Vec::new());
        write_capped(&mut sizes, &vec![0; 100_000]).unwrap();
        assert!(sizes.0.iter().all(|&size| size <= MAX_GUEST_WRITE), "{:?}", sizes.0);
        assert_eq!(sizes.0.iter().sum::<usize>(), 100_000);
    }

    struct Server {
        listener: UnixListener,
        address: Address,
        _dir: tempfile::TempDir,
    }

    fn server() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        Server { listener: UnixListener::bind(&path).unwrap(), address: Address::Unix(path), _dir: dir }
    }

    fn id(number: u8) -> ObjectId {
        lazyroot_proto::verity::digest(lazyroot_proto::Algorithm::Sha256, &[number])
    }

    impl Server {
        /// Accepts a connection and answers its hello.
        fn accept(&self) -> FrameReader {
            let (stream, _) = self.listener.accept().unwrap();
            let mut reader = FrameReader::new(Arc::new(File::from(OwnedFd::from(stream))));
            let (header, payload) = reader.read_frame().unwrap();
            assert!(matches!(Request::decode(header.kind, &payload), Ok(Request::Hello(_))));
            reply(&reader, 0, &HostMessage::Welcome { manifest_size: 0, index_size: 0, profile_size: 0 });
            reader
        }
    }

    fn reply(reader: &FrameReader, tag: u64, message: &HostMessage) {
        (&*reader.stream).write_all(&message.encode(tag)).unwrap();
    }

    #[test]
    fn replies_in_any_order_reach_their_callers() {
        const CALLS: u64 = 8;
        let server = server();
        let address = server.address.clone();
        let host = thread::spawn(move || {
            let mut reader = server.accept();
            let requests: Vec<_> = (0..CALLS).map(|_| reader.read_frame().unwrap()).collect();
            for (header, payload) in requests.iter().rev() {
                let Ok(Request::Read { offset, len, .. }) = Request::decode(header.kind, payload) else { panic!() };
                reply(&reader, header.tag, &HostMessage::Data(&vec![offset as u8; len as usize]));
            }
            reader
        });
        let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
        thread::scope(|scope| {
            for offset in 0..CALLS {
                let link = &link;
                scope
                    .spawn(move || assert_eq!(link.read(id(1), offset, 100_000).unwrap(), vec![offset as u8; 100_000]));
            }
        });
        drop(host.join().unwrap());
    }

    #[test]
    fn objects_asked_for_ahead_arrive_and_survive_a_broken_connection() {
        let server = server();
        let address = server.address.clone();
        let host = thread::spawn(move || {
            let mut first = server.accept();
            let (header, payload) = first.read_frame().unwrap();
            let many = Request::decode(header.kind, &payload);
            assert!(matches!(many, Ok(Request::ReadList(extents)) if extents.len() == 3));
            reply(&first, header.tag, &HostMessage::Data(b"a"));
            drop(first);
            // The one that was given up and the one that was answered are not asked for again.
            let mut second = server.accept();
            let (header, payload) = second.read_frame().unwrap();
            assert!(matches!(Request::decode(header.kind, &payload), Ok(Request::Read { len: 3, .. })));
            reply(&second, header.tag, &HostMessage::Data(b"ccc"));
            second
        });
        let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
        let wanted = |position, len| {
            let extent = Extent { position, block: 0, blocks: 1 };
            Wanted { extent, id: id(position as u8), offset: 0, len }
        };
        let tickets = link.read_ahead(&[wanted(1, 1), wanted(2, 2), wanted(3, 3)]);
        let [one, two, three] = tickets.try_into().unwrap();
        assert_eq!(link.redeem(one).unwrap(), b"a");
        link.forget(two);
        assert_eq!(link.redeem(three).unwrap(), b"ccc");
        drop(host.join().unwrap());
    }

    #[test]
    fn what_came_together_is_had_without_waiting_for_what_has_not() {
        let server = server();
        let address = server.address.clone();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        let host = thread::spawn(move || {
            let mut reader = server.accept();
            let tags: Vec<_> = (0..4).map(|_| reader.read_frame().unwrap().0.tag).collect();
            let together = tags[..2].iter().flat_map(|tag| HostMessage::Data(b"x").encode(*tag));
            (&*reader.stream).write_all(&together.collect::<Vec<_>>()).unwrap();
            may_go_on.recv().unwrap();
            tags[2..].iter().for_each(|tag| reply(&reader, *tag, &HostMessage::Data(b"x")));
            reader
        });
        let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
        let ask = |_| link.range_ahead(id(1), 0, 1);
        let [one, two, three, four] = [(); 4].map(ask);
        assert_eq!(link.redeem(one).unwrap(), b"x");
        link.take_in();
        assert_eq!(link.have_come([&two, &three, &four].into_iter()), 1);
        assert_eq!(link.have_come([&three, &two].into_iter()), 0, "from the first on");
        assert_eq!(link.redeem(two).unwrap(), b"x");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| link.redeem(three));
            // As often as the reader is in the other's way, whose turn it is to read.
            (0..10_000).for_each(|_| link.take_in());
            go_on.send(()).unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), b"x");
        });
        assert_eq!(link.redeem(four).unwrap(), b"x");
        drop(host.join().unwrap());
    }

    #[test]
    fn a_broken_connection_is_replaced_and_requests_are_sent_again() {
        let server = server();
        let address = server.address.clone();
        let host = thread::spawn(move || {
            let mut first = server.accept();
            first.read_frame().unwrap();
            drop(first);
            let mut second = server.accept();
            let (header, _) = second.read_frame().unwrap();
            reply(&second, header.tag, &HostMessage::Data(b"abcd"));
            second
        });
        let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
        assert_eq!(link.read(id(1), 0, 4).unwrap(), b"abcd");
        drop(host.join().unwrap());
    }

    #[test]
    fn a_request_gives_up_at_its_deadline_and_a_short_reply_is_an_error() {
        let server = server();
        let address = server.address.clone();
        let host = thread::spawn(move || {
            let mut reader = server.accept();
            let (header, _) = reader.read_frame().unwrap();
            reply(&reader, header.tag, &HostMessage::Data(b"abc"));
            reader.read_frame().unwrap();
            // Not answered: hold the connection until the guest has given up and gone.
            let _ = reader.read_frame();
        });
        let link = Link::connect(address, id(0), Duration::from_millis(300)).unwrap();
        assert!(matches!(link.read(id(1), 0, 4), Err(LinkError::Length { wanted: 4, got: 3 })));
        assert!(matches!(link.read(id(1), 0, 4), Err(LinkError::Deadline(_))));
        drop(link);
        host.join().unwrap();
    }

    #[test]
    fn silence_inside_a_frame_is_final_and_before_one_is_not() {
        for len in [100, 2 * BUFFER] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let mut reader = FrameReader::new(Arc::new(File::from(OwnedFd::from(ours))));
            assert!(is_timeout(&reader.read_frame().unwrap_err()));
            let frame = HostMessage::Data(&vec![0; len]).encode(1);
            theirs.write_all(&frame[..HEADER + len / 2]).unwrap();
            assert_eq!(reader.read_frame().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{len} bytes");
        }
    }

    #[test]
    fn after_an_outage_of_a_whole_deadline_requests_fail_fast_until_the_host_is_back() {
        const DEADLINE: Duration = Duration::from_secs(1);
        let mut server = server();
        let address = server.address.clone();
        let Address::Unix(path) = &address else { panic!("a unix socket") };
        let link = thread::scope(|scope| {
            let link = scope.spawn(|| Link::connect(address.clone(), id(0), DEADLINE).unwrap());
            drop(server.accept());
            link.join().unwrap()
        });
        // From here on nobody accepts.
        std::fs::remove_file(path).unwrap();
        let wait = |link: &Link| {
            let started = Instant::now();
            assert!(matches!(link.read(id(1), 0, 4), Err(LinkError::Deadline(_))));
            started.elapsed()
        };
        assert!(wait(&link) > DEADLINE / 2, "the first request waits for the host");
        assert!(wait(&link) < DEADLINE / 2, "the next does not");
        assert!(wait(&link) < DEADLINE / 2, "nor the one after");

        server.listener = UnixListener::bind(path).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut reader = server.accept();
                let (header, _) = reader.read_frame().unwrap();
                reply(&reader, header.tag, &HostMessage::Data(b"abcd"));
            });
            assert_eq!(link.read(id(1), 0, 4).unwrap(), b"abcd");
        });
        std::fs::remove_file(path).unwrap();
        assert!(wait(&link) > DEADLINE / 2, "a new outage is waited for again");
    }

    #[test]
    fn a_host_that_refuses_is_not_asked_again() {
        let server = server();
        let address = server.address.clone();
        let host = thread::spawn(move || {
            let (stream, _) = server.listener.accept().unwrap();
            let mut reader = FrameReader::new(Arc::new(File::from(OwnedFd::from(stream))));
            reader.read_frame().unwrap();
            reply(&reader, 0, &HostMessage::Error { code: ErrorCode::Refused, message: "no such image".into() });
        });
        let refused = Link::connect(address, id(0), REQUEST_DEADLINE);
        assert!(matches!(refused, Err(LinkError::Host { code: ErrorCode::Refused, .. })));
        host.join().unwrap();
    }
}
