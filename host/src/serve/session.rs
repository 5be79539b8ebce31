//! A data session: one guest reading one image.
//!
//! What is in the page cache is answered at once, on the thread that read the request. What may have to wait
//! is handed to a thread that may, so that replies come in any order and a slow object delays nobody.
//!
//! Replies from the page cache pass through a small piece of memory: a thousand guests that read a mebibyte each would
//! otherwise take a gibibyte, and what stays in a processor's cache between being read and sent is faster too. A unix socket
//! takes pages of the page cache themselves, which is faster still: all but the first piece goes so.

use std::io;
use std::sync::Arc;

use lazyroot_proto::frame::{ErrorCode, HEADER, Header, HostMessage, Metadata, Request, kind};
use lazyroot_proto::reads::Extent;
use lazyroot_proto::{ObjectId, verity};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::conversation::{self, Outbox};
use super::{Activity, BoxStream, Event, ServedImage, Server, printable};
use crate::store::Object;

/// Requests of one session that may wait for a slow source or for memory at a time; the next one waits for a place.
/// A guest has no more than a few dozen threads reading.
const SLOW_REQUESTS: usize = 256;

/// Memory for one session's replies that wait, in KiB: no session can take all of the server's
/// ([`super::SLOW_REPLY_BUDGET_KIB`]).
const SESSION_REPLY_BUDGET_KIB: usize = 8 << 10;

/// Replies from the page cache are read and sent in pieces of this many bytes, and small ones are sent together up to
/// this many: a thousand sessions hold 64 MiB at most, and more at a time is no faster.
const PIECE: usize = 64 << 10;

/// What a session may report; a guest that goes on is not listened to.
const MAX_EVENTS: usize = 1000;

/// One part of the image that can be asked for.
#[derive(Clone, Copy)]
enum Part {
    Manifest,
    Index,
    Object(ObjectId),
    /// A level of its Merkle tree.
    Nodes(ObjectId, u8),
}

impl Part {
    fn object(self) -> Option<ObjectId> {
        match self {
            Part::Object(id) | Part::Nodes(id, _) => Some(id),
            Part::Manifest | Part::Index => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Range {
    part: Part,
    offset: u64,
    len: u32,
}

type Failure = (ErrorCode, String);

/// Serves `image` on `stream` until the guest goes away, stops reading or breaks the protocol.
pub(super) async fn run(server: &Server, image: Arc<ServedImage>, stream: BoxStream) {
    let (mut requests, outbox) = conversation::split(stream);
    let profile = image.memory.as_ref().map(|memory| memory.ahead(&image.index)).unwrap_or_default();
    let recording = Recording { server, activity: server.begin(&image), image: image.clone() };
    let mut session = Session {
        server,
        image,
        profile,
        activity: recording.activity.clone(),
        outbox: outbox.clone(),
        places: Arc::new(Semaphore::new(SLOW_REQUESTS)),
        memory: Arc::new(Semaphore::new(SESSION_REPLY_BUDGET_KIB)),
        slow: JoinSet::new(),
        events: 0,
    };
    let welcome = HostMessage::Welcome {
        manifest_size: session.image.manifest_size,
        index_size: session.image.index_bytes.len() as u64,
        profile_size: session.profile.len() as u64,
    };
    if outbox.send(&welcome.encode(0)).await.is_err() {
        return;
    }
    let about = format!("about {}", session.image.id);
    while let Some((tag, request)) = requests.next(Request::decode, &about).await {
        if session.handle(tag, request).await.is_err() {
            return;
        }
    }
}

struct Session<'a> {
    server: &'a Server,
    image: Arc<ServedImage>,
    /// The boot profile as it goes over the wire.
    profile: Arc<[u8]>,
    activity: Arc<Activity>,
    outbox: Arc<Outbox>,
    places: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    /// Replies that wait; dropped with the session.
    slow: JoinSet<()>,
    events: usize,
}

impl Session<'_> {
    async fn handle(&mut self, tag: u64, request: Request) -> io::Result<()> {
        match request {
            Request::Ping => self.outbox.send(&HostMessage::Pong.encode(tag)).await,
            Request::Event { kind, at, text } => {
                self.events += 1;
                if self.events <= MAX_EVENTS {
                    let event = Event { kind, at, text: printable(&text) };
                    self.activity.state().milestones.push(event.clone());
                    (self.server.events)(event);
                }
                Ok(())
            }
            Request::Reads(reads) => {
                self.activity.read(reads);
                Ok(())
            }
            Request::Counters(counters) => {
                self.server.counted(&self.activity, *counters);
                Ok(())
            }
            Request::Hello(_) => self.fail(tag, (ErrorCode::Invalid, "a second hello".into())).await,
            Request::Get { what: Metadata::Manifest, offset, len } => {
                self.answer(tag, Range { part: Part::Manifest, offset, len }).await
            }
            Request::Get { what: Metadata::Index, offset, len } => {
                self.answer(tag, Range { part: Part::Index, offset, len }).await
            }
            Request::Get { what: Metadata::Profile, offset, len } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let profile = self.profile.clone();
                match start.checked_add(len as usize).and_then(|end| profile.get(start..end)) {
                    Some(piece) => {
                        self.server.stats.answered(None, len);
                        self.activity.answered(len);
                        self.outbox.send(&HostMessage::Data(piece).encode(tag)).await
                    }
                    None => self.fail(tag, outside(offset, len, profile.len() as u64)).await,
                }
            }
            Request::Read { id, offset, len } => self.answer(tag, Range { part: Part::Object(id), offset, len }).await,
            Request::Nodes { id, level, offset, len } => {
                self.answer(tag, Range { part: Part::Nodes(id, level), offset, len }).await
            }
            Request::ReadList(extents) => {
                let index = self.image.index.clone();
                let range = |extent: Extent| {
                    let (id, size) = index.get(extent.position).ok_or_else(|| no_object(extent.position))?;
                    let behind = || (ErrorCode::Invalid, format!("object {id} has no block {}", extent.block));
                    let (offset, len) = extent.bytes(size).ok_or_else(behind)?;
                    Ok(Range { part: Part::Object(id), offset, len: len as u32 })
                };
                self.answer_many(tag, extents.into_iter().map(range)).await
            }
        }
    }

    async fn fail(&self, tag: u64, (code, message): Failure) -> io::Result<()> {
        self.server.stats.failed();
        self.activity.state().failures += 1;
        tracing::warn!("image {}: {message}", self.image.id);
        self.outbox.send(&HostMessage::Error { code, message }.encode(tag)).await
    }

    /// Answers several ranges, each by itself; those in memory with one write for many of them.
    async fn answer_many(&mut self, tag: u64, ranges: impl Iterator<Item = Result<Range, Failure>>) -> io::Result<()> {
        let mut frames = Vec::new();
        for (tag, range) in (tag..).zip(ranges) {
            let range = match range {
                Ok(range) => range,
                Err(failure) => {
                    self.fail(tag, failure).await?;
                    continue;
                }
            };
            if !frames.is_empty() && frames.len() + range.len as usize > PIECE {
                self.outbox.send(&std::mem::take(&mut frames)).await?;
            }
            if range.len as usize > PIECE {
                self.answer_checked(tag, range).await?;
            } else if !self.append_cached(&mut frames, tag, range) {
                self.answer_slowly(tag, range).await;
            }
        }
        self.outbox.send(&frames).await
    }

    /// Answers a range: now if it is in memory, from another thread otherwise.
    async fn answer(&mut self, tag: u64, range: Range) -> io::Result<()> {
        match check(&self.image, range) {
            Ok(()) => self.answer_checked(tag, range).await,
            Err(failure) => self.fail(tag, failure).await,
        }
    }

    async fn answer_checked(&mut self, tag: u64, range: Range) -> io::Result<()> {
        if range.len as usize > PIECE {
            if self.answer_in_pieces(tag, range).await? {
                return Ok(());
            }
        } else {
            let mut frame = Vec::new();
            if self.append_cached(&mut frame, tag, range) {
                return self.outbox.send(&frame).await;
            }
        }
        self.answer_slowly(tag, range).await;
        Ok(())
    }

    /// Appends the reply to a range of an object that is in memory; leaves `frames` alone, and returns `false`, if it
    /// is not.
    fn append_cached(&self, frames: &mut Vec<u8>, tag: u64, range: Range) -> bool {
        let Part::Object(id) = range.part else { return false };
        let Some(object) = self.image.object(&id) else { return false };
        let start = frames.len();
        append_data_frame(frames, tag, range.len);
        let cached = self.image.source.read_cached(&object, range.offset, &mut frames[start + HEADER..]);
        match cached {
            true => self.answered(range),
            false => frames.truncate(start),
        }
        cached
    }

    /// Sends the reply to a range of an object, a piece at a time; sends nothing, and returns `false`, if its beginning
    /// and its end are not in memory. What lies between may, rarely, have to wait for a disk.
    ///
    /// # Errors
    /// If the guest does not take it, or the rest cannot be read: there is no way to take back what was sent, so the
    /// session ends, and the guest that asks again is told.
    async fn answer_in_pieces(&self, tag: u64, range: Range) -> io::Result<bool> {
        let Part::Object(id) = range.part else { return Ok(false) };
        let Some(object) = self.image.object(&id).filter(|_| !self.image.is_broken(&id)) else { return Ok(false) };
        let source = &self.image.source;
        let header = Header { len: range.len, kind: kind::DATA, tag }.encode();
        let mut piece = vec![0; HEADER + PIECE];
        piece[..HEADER].copy_from_slice(&header);
        let end = range.offset + u64::from(range.len);
        if !source.read_cached(&object, end - 1, &mut [0])
            || !source.read_cached(&object, range.offset, &mut piece[HEADER..])
        {
            return Ok(false);
        }
        let send = async {
            let mut writer = self.outbox.writer().await;
            writer.write_all(&piece).await?;
            let mut offset = range.offset + PIECE as u64;
            while offset < end {
                let len = (end - offset).min(PIECE as u64) as usize;
                let sent = match source.cached_file(&object, offset + len as u64 - 1) {
                    Some(file) => writer.send_file(&file, offset, len),
                    None => 0,
                };
                if sent > 0 {
                    offset += sent as u64;
                    continue;
                }
                piece.resize(len, 0);
                if !source.read_cached(&object, offset, &mut piece) {
                    // All of it, in one request where that goes further than to a disk.
                    piece.resize((end - offset) as usize, 0);
                    piece = self.read_rest(object, offset, piece).await?;
                }
                writer.write_all(&piece).await?;
                offset += piece.len() as u64;
            }
            writer.flush().await
        };
        self.outbox.in_time(send).await?;
        self.answered(range);
        Ok(true)
    }

    /// Fills the rest of a reply from a thread that may wait.
    async fn read_rest(&self, object: Object, offset: u64, mut piece: Vec<u8>) -> io::Result<Vec<u8>> {
        let source = self.image.source.clone();
        let read = tokio::task::spawn_blocking(move || source.read(&object, offset, &mut piece).map(|()| piece));
        let read = read.await.map_err(io::Error::other)?;
        read.map_err(|error| {
            tracing::warn!("ended a session about {} in the middle of a reply: {error}", self.image.id);
            self.image.broke(object.id);
            io::Error::other(error)
        })
    }

    fn answered(&self, range: Range) {
        self.server.stats.answered(range.part.object(), range.len);
        self.activity.answered(range.len);
    }

    /// Answers a range that was checked from a task of its own.
    async fn answer_slowly(&mut self, tag: u64, range: Range) {
        while self.slow.try_join_next().is_some() {}
        let place = self.places.clone().acquire_owned().await.expect("never closed");
        let (image, outbox, stats) = (self.image.clone(), self.outbox.clone(), self.server.stats.clone());
        let activity = self.activity.clone();
        let (session_memory, server_memory) = (self.memory.clone(), self.server.slow_replies.clone());
        // In a task of its own from here on: whatever it waits for, the session goes on reading.
        self.slow.spawn(async move {
            let kib = range.len.div_ceil(1 << 10).max(1);
            let of_session = session_memory.acquire_many_owned(kib).await.expect("never closed");
            let of_server = server_memory.acquire_many_owned(kib).await.expect("never closed");
            let served = image.clone();
            // A read that has begun outlives a dropped session; its reply does not.
            let reply = tokio::task::spawn_blocking(move || read(&served, tag, range)).await;
            let reply = reply.unwrap_or_else(|_| Err((ErrorCode::Unavailable, "the server failed".into())));
            let frame = match reply {
                Ok(frame) => {
                    stats.answered(range.part.object(), range.len);
                    activity.answered(range.len);
                    frame
                }
                Err((code, message)) => {
                    stats.failed();
                    activity.state().failures += 1;
                    tracing::warn!("image {}: {message}", image.id);
                    HostMessage::Error { code, message }.encode(tag)
                }
            };
            // A failed write ends the session.
            let _ = outbox.send(&frame).await;
            drop((place, of_session, of_server));
        });
    }
}

/// Appends room for a DATA frame of `len` bytes, its header filled in.
fn append_data_frame(frames: &mut Vec<u8>, tag: u64, len: u32) {
    frames.reserve(HEADER + len as usize);
    frames.extend_from_slice(&Header { len, kind: kind::DATA, tag }.encode());
    frames.resize(frames.len() + len as usize, 0);
}

fn outside(offset: u64, len: u32, size: u64) -> Failure {
    (ErrorCode::Invalid, format!("{len} bytes at {offset} lie outside of {size}"))
}

fn no_object(position: u32) -> Failure {
    (ErrorCode::Invalid, format!("the image has no object at position {position}"))
}

/// What a session has recorded, remembered when it ends.
struct Recording<'a> {
    server: &'a Server,
    activity: Arc<Activity>,
    image: Arc<ServedImage>,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Some(memory) = &self.image.memory
            && let Err(error) = memory.remember(&self.activity, &self.activity.state())
        {
            // A store may be read-only to us.
            tracing::debug!("what was read of image {} is not remembered: {error:#}", self.image.id);
        }
        self.activity.state().ended = true;
        self.server.ended();
    }
}

/// Whether the session may read this, and the range lies inside it.
fn check(image: &ServedImage, range: Range) -> Result<(), Failure> {
    let object_size = |id: &ObjectId| {
        let position = image.index.position(id);
        let entry = position.and_then(|position| image.index.get(position));
        entry
            .map(|(_, size)| size)
            .ok_or_else(|| (ErrorCode::Refused, format!("object {id} is not part of image {}", image.id)))
    };
    let size = match range.part {
        Part::Manifest => image.manifest_size,
        Part::Index => image.index_bytes.len() as u64,
        Part::Object(id) => object_size(&id)?,
        Part::Nodes(id, level) => verity::level_len(id.algorithm(), object_size(&id)?, level),
    };
    match range.offset.checked_add(range.len.into()) {
        Some(end) if end <= size => Ok(()),
        _ => Err(outside(range.offset, range.len, size)),
    }
}

/// The whole reply frame to a range that was checked. May block.
fn read(image: &ServedImage, tag: u64, range: Range) -> Result<Vec<u8>, Failure> {
    let object = |id| image.object(&id).ok_or_else(|| (ErrorCode::Refused, format!("object {id} is of no image here")));
    let unavailable = |error: &dyn std::fmt::Display| (ErrorCode::Unavailable, error.to_string());
    let mut frame = Vec::new();
    append_data_frame(&mut frame, tag, range.len);
    let buffer = &mut frame[HEADER..];
    let piece = |bytes: &[u8], buffer: &mut [u8]| {
        let start = range.offset as usize;
        match bytes.get(start..start + buffer.len()) {
            Some(piece) => buffer.copy_from_slice(piece),
            None => return Err((ErrorCode::Unavailable, "the host's metadata changed under it".to_owned())),
        }
        Ok(())
    };
    match range.part {
        Part::Manifest => image
            .read_manifest(range.offset, buffer)
            .map_err(|error| unavailable(&format_args!("cannot read the manifest of {}: {error}", image.id)))?,
        Part::Index => piece(&image.index_bytes, buffer)?,
        Part::Object(id) => {
            image.source.read(&object(id)?, range.offset, buffer).map_err(|error| unavailable(&error))?;
        }
        Part::Nodes(id, level) => {
            image.read_nodes(&object(id)?, level, range.offset, buffer).map_err(|error| unavailable(&error))?;
        }
    }
    Ok(frame)
}
