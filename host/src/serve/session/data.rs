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
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::part::{Failure, Part, PartRange, append_data_frame, check, no_object, outside, read};
use super::registry::Sessions;
use crate::serve::images::ServedImage;
use crate::serve::record::{Activity, Event};
use crate::serve::wire::channel::{self, Outbox};
use crate::serve::wire::stream::BoxStream;
use crate::store::Object;
use crate::text::printable;

/// Requests of one session that may wait for a slow source or for memory at a time; the next one waits for a place.
/// A guest has no more than a few dozen threads reading.
const SLOW_REQUESTS: usize = 256;

/// Memory for one session's replies that wait, in KiB: no session can take all of the server's
/// ([`super::registry`]).
const SESSION_REPLY_BUDGET_KIB: usize = 8 << 10;

/// Replies from the page cache are read and sent in pieces of this many bytes, and small ones are sent together up to
/// this many: a thousand sessions hold 64 MiB at most, and more at a time is no faster.
const CHUNK: usize = 64 << 10;

/// What a session may report; a guest that goes on is not listened to.
const MAX_EVENTS: usize = 1000;

/// Serves `image` on `stream` until the guest goes away, stops reading or breaks the protocol.
pub(in crate::serve) async fn run(sessions: &Sessions, image: Arc<ServedImage>, stream: BoxStream) {
    let (mut requests, outbox) = channel::split(stream);
    let profile = image.history.as_ref().map(|history| history.hints(&image.index)).unwrap_or_default();
    let recording = Recording { sessions, activity: sessions.begin(&image), image: image.clone() };
    let mut session = Session {
        sessions,
        image,
        profile,
        activity: recording.activity.clone(),
        outbox: outbox.clone(),
        places: Arc::new(Semaphore::new(SLOW_REQUESTS)),
        reply_memory: Arc::new(Semaphore::new(SESSION_REPLY_BUDGET_KIB)),
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
    sessions: &'a Sessions,
    image: Arc<ServedImage>,
    /// The boot profile as it goes over the wire.
    profile: Arc<[u8]>,
    activity: Arc<Activity>,
    outbox: Arc<Outbox>,
    places: Arc<Semaphore>,
    reply_memory: Arc<Semaphore>,
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
                    (self.sessions.events)(event);
                }
                Ok(())
            }
            Request::Reads(reads) => {
                self.activity.add_reads(reads);
                Ok(())
            }
            Request::Counters(counters) => {
                self.sessions.count(&self.activity, *counters);
                Ok(())
            }
            Request::Hello(_) => self.fail(tag, (ErrorCode::Invalid, "a second hello".into())).await,
            Request::Get { what: Metadata::Manifest, offset, len } => {
                self.answer(tag, PartRange { part: Part::Manifest, offset, len }).await
            }
            Request::Get { what: Metadata::Index, offset, len } => {
                self.answer(tag, PartRange { part: Part::Index, offset, len }).await
            }
            Request::Get { what: Metadata::Profile, offset, len } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let profile = self.profile.clone();
                match start.checked_add(len as usize).and_then(|end| profile.get(start..end)) {
                    Some(piece) => {
                        self.sessions.totals.count_reply(None, len);
                        self.activity.count_reply(len);
                        self.outbox.send(&HostMessage::Data(piece).encode(tag)).await
                    }
                    None => self.fail(tag, outside(offset, len, profile.len() as u64)).await,
                }
            }
            Request::Read { id, offset, len } => {
                self.answer(tag, PartRange { part: Part::Object(id), offset, len }).await
            }
            Request::Nodes { id, level, offset, len } => {
                self.answer(tag, PartRange { part: Part::Nodes(id, level), offset, len }).await
            }
            Request::ReadList(extents) => {
                let index = self.image.index.clone();
                let range = |extent: Extent| {
                    let (id, size) = index.get(extent.position).ok_or_else(|| no_object(extent.position))?;
                    let behind = || (ErrorCode::Invalid, format!("object {id} has no block {}", extent.block));
                    let (offset, len) = extent.bytes(size).ok_or_else(behind)?;
                    Ok(PartRange { part: Part::Object(id), offset, len: len as u32 })
                };
                self.answer_many(tag, extents.into_iter().map(range)).await
            }
        }
    }

    async fn fail(&self, tag: u64, (code, message): Failure) -> io::Result<()> {
        self.sessions.totals.count_failure();
        self.activity.state().failures += 1;
        tracing::warn!("image {}: {message}", self.image.id);
        self.outbox.send(&HostMessage::Error { code, message }.encode(tag)).await
    }

    /// Answers several ranges, each by itself; those in memory with one write for many of them.
    async fn answer_many(
        &mut self,
        tag: u64,
        ranges: impl Iterator<Item = Result<PartRange, Failure>>,
    ) -> io::Result<()> {
        let mut frames = Vec::new();
        for (tag, range) in (tag..).zip(ranges) {
            let range = match range {
                Ok(range) => range,
                Err(failure) => {
                    self.fail(tag, failure).await?;
                    continue;
                }
            };
            if !frames.is_empty() && frames.len() + range.len as usize > CHUNK {
                self.outbox.send(&std::mem::take(&mut frames)).await?;
            }
            if range.len as usize > CHUNK {
                self.answer_checked(tag, range).await?;
            } else if !self.append_cached(&mut frames, tag, range) {
                self.answer_slowly(tag, range).await;
            }
        }
        self.outbox.send(&frames).await
    }

    /// Answers a range: now if it is in memory, from another thread otherwise.
    async fn answer(&mut self, tag: u64, range: PartRange) -> io::Result<()> {
        match check(&self.image, range) {
            Ok(()) => self.answer_checked(tag, range).await,
            Err(failure) => self.fail(tag, failure).await,
        }
    }

    async fn answer_checked(&mut self, tag: u64, range: PartRange) -> io::Result<()> {
        if range.len as usize > CHUNK {
            if self.answer_in_chunks(tag, range).await? {
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
    fn append_cached(&self, frames: &mut Vec<u8>, tag: u64, range: PartRange) -> bool {
        let Part::Object(id) = range.part else { return false };
        let Some(object) = self.image.object(&id) else { return false };
        let start = frames.len();
        append_data_frame(frames, tag, range.len);
        let cached = self.image.source.read_cached(&object, range.offset, &mut frames[start + HEADER..]);
        match cached {
            true => self.count_reply(range),
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
    async fn answer_in_chunks(&self, tag: u64, range: PartRange) -> io::Result<bool> {
        let Part::Object(id) = range.part else { return Ok(false) };
        let Some(object) = self.image.object(&id).filter(|_| !self.image.is_unreadable(&id)) else { return Ok(false) };
        let source = &self.image.source;
        let header = Header { len: range.len, kind: kind::DATA, tag }.encode();
        let mut piece = vec![0; HEADER + CHUNK];
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
            let mut offset = range.offset + CHUNK as u64;
            while offset < end {
                let len = (end - offset).min(CHUNK as u64) as usize;
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
        self.count_reply(range);
        Ok(true)
    }

    /// Fills the rest of a reply from a thread that may wait.
    async fn read_rest(&self, object: Object, offset: u64, mut piece: Vec<u8>) -> io::Result<Vec<u8>> {
        let source = self.image.source.clone();
        let read = tokio::task::spawn_blocking(move || source.read(&object, offset, &mut piece).map(|()| piece));
        let read = read.await.map_err(io::Error::other)?;
        read.map_err(|error| {
            tracing::warn!("ended a session about {} in the middle of a reply: {error}", self.image.id);
            self.image.note_unreadable(object.id);
            io::Error::other(error)
        })
    }

    fn count_reply(&self, range: PartRange) {
        self.sessions.totals.count_reply(range.part.object(), range.len);
        self.activity.count_reply(range.len);
    }

    /// Answers a range that was checked from a task of its own.
    async fn answer_slowly(&mut self, tag: u64, range: PartRange) {
        while self.slow.try_join_next().is_some() {}
        let place = self.places.clone().acquire_owned().await.expect("never closed");
        let (image, outbox, totals) = (self.image.clone(), self.outbox.clone(), self.sessions.totals.clone());
        let activity = self.activity.clone();
        let (session_memory, server_memory) = (self.reply_memory.clone(), self.sessions.slow_replies.clone());
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
                    totals.count_reply(range.part.object(), range.len);
                    activity.count_reply(range.len);
                    frame
                }
                Err((code, message)) => {
                    totals.count_failure();
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

/// What a session has recorded, kept when it ends.
struct Recording<'a> {
    sessions: &'a Sessions,
    activity: Arc<Activity>,
    image: Arc<ServedImage>,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Some(history) = &self.image.history
            && let Err(error) = history.record(&self.activity, &self.activity.state())
        {
            // A store may be read-only to us.
            tracing::debug!("what was read of image {} is not remembered: {error:#}", self.image.id);
        }
        self.activity.state().ended = true;
        self.sessions.end();
    }
}
