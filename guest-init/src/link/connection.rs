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

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::ObjectId;
use lazyroot_proto::frame::{FrameError, Header, Hello, HostMessage, Metadata, Request, Role, kind};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::link::calls::{Calls, Reply, Ticket};
use crate::link::dial::{Address, RETRY, dial};
use crate::link::error::LinkError;
use crate::link::frames::{FrameReader, is_timeout, write_capped};

/// Silence on a connection with requests in flight after which the host is asked whether it is alive; as much
/// silence again and the connection is replaced. A hypervisor's proxy may never tell us that the server died.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Time after an outage in which requests make one attempt to connect instead of waiting again: longer than the
/// kernel takes between its attempts to read a page, and than one attempt may take with a silent proxy. A program
/// that tries again later gets the whole deadline.
const FAIL_FAST: Duration = Duration::from_secs(10);

/// A session with the host's object server about one image.
pub struct Link {
    address: Address,
    role: Role,
    deadline: Duration,
    state: Mutex<State>,
    /// Held by the leader: the thread that has the lock reads.
    reader: Mutex<Option<FrameReader>>,
    /// Held while a frame is written, so that frames never mix.
    writer: Mutex<Option<Arc<File>>>,
}

#[derive(Default)]
struct State {
    calls: Calls,
    /// `None` until the first session opened.
    metadata: Option<MetadataSizes>,
    /// Until when requests fail fast; renewed by each that does, cleared by a connection.
    unreachable_until: Option<Instant>,
}

/// Sizes of an image's metadata in bytes, learnt when the session opened.
#[derive(Clone, Copy, Debug)]
struct MetadataSizes {
    manifest: u64,
    index: u64,
    profile: u64,
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
            state: Mutex::default(),
            reader: Mutex::default(),
            writer: Mutex::default(),
        };
        link.reconnect(&mut lock(&link.reader), Instant::now() + deadline)?;
        Ok(link)
    }

    /// How much there is of one kind of metadata, in bytes.
    pub(super) fn metadata_size(&self, what: Metadata) -> u64 {
        let sizes = lock(&self.state).metadata.expect("a connected link has had its welcome");
        match what {
            Metadata::Manifest => sizes.manifest,
            Metadata::Index => sizes.index,
            Metadata::Profile => sizes.profile,
        }
    }

    /// Sends a request that nothing answers. Lost if the connection is: what matters is sent again, or seen by its effects.
    pub fn notify(&self, request: &Request) {
        let _ = self.write_frame(&request.encode(0));
    }

    /// Sends a request for `len` bytes, and waits for nothing.
    pub(super) fn request(&self, request: &Request, len: u32) -> Ticket {
        let (tag, frame) = lock(&self.state).calls.add(request);
        // A failed write shows up as a failed read, which replays this request.
        let _ = self.write_frame(&frame);
        Ticket { tag, len }
    }

    /// Sends one frame that stands for all of these requests, and waits for nothing; returns the first one's tag.
    pub(super) fn request_together(&self, requests: impl Iterator<Item = Request>, frame: &Request) -> u64 {
        let first_tag = lock(&self.state).calls.add_all(requests);
        // A failed write shows up as a failed read, which replays the requests.
        let _ = self.write_frame(&frame.encode(first_tag));
        first_tag
    }

    /// Hands out replies that were received together with earlier ones, without waiting.
    pub fn dispatch_buffered(&self) {
        if let Ok(mut reader) = self.reader.try_lock() {
            while let Some((header, payload)) = reader.as_mut().and_then(FrameReader::buffered_frame) {
                self.dispatch(None, header, payload);
            }
            drop(reader);
            self.wake_next_leader();
        }
    }

    /// How many of these replies, from the first on, have arrived: so many can be redeemed without waiting.
    pub fn count_arrived<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) -> usize {
        let state = lock(&self.state);
        tickets.take_while(|ticket| state.calls.has_reply(ticket.tag)).count()
    }

    /// Waits for the payload that a ticket stands for.
    pub(super) fn receive(&self, ticket: Ticket) -> Reply {
        let arrived = lock(&self.state).calls.redeem(ticket.tag);
        let data = match arrived {
            Some(reply) => reply?,
            None => self.await_reply(ticket.tag)?,
        };
        if data.len() != ticket.len as usize {
            return Err(LinkError::Length { requested_len: ticket.len.into(), reply_len: data.len() as u64 });
        }
        Ok(data)
    }

    /// Gives up what a ticket stands for; it may be on its way already.
    pub fn forget(&self, ticket: Ticket) {
        lock(&self.state).calls.remove(ticket.tag);
    }

    /// Waits for a reply, leading the reading if nobody else does, and passes the lead on.
    fn await_reply(&self, tag: u64) -> Reply {
        let reply = self.lead_or_follow(tag, Instant::now() + self.deadline);
        lock(&self.state).calls.remove(tag);
        self.wake_next_leader();
        reply
    }

    /// Wakes a thread that waits for a reply, to read: perhaps nobody else does any more.
    fn wake_next_leader(&self) {
        let next = lock(&self.state).calls.any_caller();
        if let Some(next) = next {
            next.unpark();
        }
    }

    fn take_reply(&self, tag: u64) -> Option<Reply> {
        lock(&self.state).calls.take_reply(tag)
    }

    fn lead_or_follow(&self, tag: u64, deadline: Instant) -> Reply {
        let mut pinged = false;
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
                    pinged = false;
                    if let Some(reply) = self.dispatch(Some(tag), header, payload) {
                        return reply;
                    }
                }
                Some(Err(error)) if is_timeout(&error) && !pinged => {
                    pinged = true;
                    let _ = self.write_frame(&Request::Ping.encode(0));
                }
                // Broken, silent, or not there at all.
                Some(Err(_)) | None => {
                    pinged = false;
                    self.reconnect(&mut reader, deadline)?;
                }
            }
        }
    }

    /// Hands a frame to the call that it answers; returns it if that is the caller's own.
    fn dispatch(&self, own: Option<u64>, header: Header, payload: Vec<u8>) -> Option<Reply> {
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
        lock(&self.state).calls.resolve(header.tag, reply);
        None
    }

    fn write_frame(&self, frame: &[u8]) -> io::Result<()> {
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
        let unreachable = lock(&self.state).unreachable_until.is_some_and(|until| started < until);
        let deadline = if unreachable { started } else { deadline };
        loop {
            match self.open_session() {
                Ok((fresh, sizes)) => {
                    // Nobody writes between here and the end of the replay: a request made meanwhile waits
                    // for the writer and is among the calls already, so it may be sent twice, never zero times.
                    let mut writer = lock(&self.writer);
                    let mut state = lock(&self.state);
                    state.metadata = Some(sizes);
                    state.unreachable_until = None;
                    let stream = fresh.stream();
                    let replayed = state.calls.unanswered_frames().try_for_each(|frame| write_capped(&*stream, frame));
                    if replayed.is_ok() {
                        *writer = Some(stream);
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
                    lock(&self.state).unreachable_until = Some(now + FAIL_FAST);
                }
                return Err(LinkError::Deadline(self.deadline));
            }
            thread::sleep(RETRY);
        }
    }

    fn open_session(&self) -> Result<(FrameReader, MetadataSizes), SessionError> {
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
                Ok((reader, MetadataSizes { manifest: manifest_size, index: index_size, profile: profile_size }))
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
