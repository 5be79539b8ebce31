//! A data session: one guest reading one image.
//!
//! What is in the page cache is answered at once, on the thread that read the request. What may have to wait
//! is handed to a thread that may, so that replies come in any order and a slow object delays nobody.

use std::io;
use std::sync::Arc;

use lazyroot_proto::ObjectId;
use lazyroot_proto::frame::{ErrorCode, FromHost, HEADER, Header, Metadata, Request, kind};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::{BoxStream, Event, ServedImage, Server, read_frame, write_frame};

/// Requests of one session that may wait for a slow source at a time; the next one waits for a place. A guest
/// has no more than a few dozen threads reading.
const SLOW_REQUESTS: usize = 64;

/// One part of the image that can be asked for.
#[derive(Clone, Copy)]
enum Part {
    Manifest,
    Index,
    Object(ObjectId),
    Leaves(ObjectId),
}

#[derive(Clone, Copy)]
struct Range {
    part: Part,
    offset: u64,
    len: u32,
}

type Failure = (ErrorCode, String);

/// Serves `image` on `stream` until the guest goes away or breaks the protocol.
pub(super) async fn run(server: &Server, image: Arc<ServedImage>, stream: BoxStream) {
    let (mut reader, writer) = tokio::io::split(stream);
    let session = Session { server, image: image.clone(), writer: Arc::new(Mutex::new(writer)) };
    let welcome = FromHost::Welcome { manifest_size: image.manifest_size, index_size: image.index_bytes.len() as u64 };
    if session.send(&welcome.encode(0)).await.is_err() {
        return;
    }
    let places = Arc::new(Semaphore::new(SLOW_REQUESTS));
    // Dropped with the session, and the requests that still wait with it.
    let mut slow = JoinSet::new();
    loop {
        while slow.try_join_next().is_some() {}
        let Ok((header, payload)) = read_frame(&mut reader).await else { return };
        let request = match Request::decode(header.kind, &payload) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!("ended a session about {}: {error}", image.id);
                return;
            }
        };
        let sent = match request {
            Request::Ping => session.send(&FromHost::Pong.encode(header.tag)).await,
            Request::Event { kind, at, text } => {
                (server.events)(Event { kind, at, text });
                Ok(())
            }
            Request::Hello(_) => session.fail(header.tag, (ErrorCode::Invalid, "a second hello".into())).await,
            Request::Get { what, offset, len } => {
                let part = match what {
                    Metadata::Manifest => Part::Manifest,
                    Metadata::Index => Part::Index,
                };
                session.answer(&mut slow, &places, header.tag, Range { part, offset, len }).await
            }
            Request::Read { id, offset, len } => {
                session.answer(&mut slow, &places, header.tag, Range { part: Part::Object(id), offset, len }).await
            }
            Request::Leaves { id, offset, len } => {
                session.answer(&mut slow, &places, header.tag, Range { part: Part::Leaves(id), offset, len }).await
            }
            Request::ReadMany { first, count } => {
                let mut sent = Ok(());
                for number in 0..count {
                    let tag = header.tag.wrapping_add(number.into());
                    sent = match image.index.get(first.saturating_add(number)) {
                        Some((id, size)) if size <= lazyroot_proto::frame::MAX_READ.into() => {
                            let range = Range { part: Part::Object(id), offset: 0, len: size as u32 };
                            session.answer(&mut slow, &places, tag, range).await
                        }
                        Some((id, _)) => session.fail(tag, (ErrorCode::Invalid, format!("object {id} is large"))).await,
                        None => session.fail(tag, (ErrorCode::Invalid, "no such position".into())).await,
                    };
                    if sent.is_err() {
                        break;
                    }
                }
                sent
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

struct Session<'a> {
    server: &'a Server,
    image: Arc<ServedImage>,
    writer: Arc<Mutex<WriteHalf<BoxStream>>>,
}

impl Session<'_> {
    async fn send(&self, frame: &[u8]) -> io::Result<()> {
        write_frame(&mut *self.writer.lock().await, frame).await
    }

    async fn fail(&self, tag: u64, (code, message): Failure) -> io::Result<()> {
        self.server.stats.failed();
        tracing::warn!("image {}: {message}", self.image.id);
        self.send(&FromHost::Error { code, message }.encode(tag)).await
    }

    /// Answers a range: now if it is in memory, from another thread otherwise.
    async fn answer(&self, slow: &mut JoinSet<()>, places: &Arc<Semaphore>, tag: u64, range: Range) -> io::Result<()> {
        if let Err(failure) = check(&self.image, range) {
            return self.fail(tag, failure).await;
        }
        if let Part::Object(id) | Part::Leaves(id) = range.part {
            self.server.stats.touched(id);
        }
        let mut frame = data_frame(tag, range.len);
        if let Part::Object(id) = range.part
            && self.image.source.read_cached(&id, range.offset, &mut frame[HEADER..])
        {
            self.server.stats.answered(range.len as usize);
            return self.writer.lock().await.write_all(&frame).await;
        }
        drop(frame);
        let place = places.clone().acquire_owned().await.expect("never closed");
        let budget = range.len.div_ceil(1 << 10).max(1);
        let memory = self.server.slow_replies.clone().acquire_many_owned(budget).await.expect("never closed");
        let (image, writer) = (self.image.clone(), self.writer.clone());
        // The read itself outlives a dropped session by at most one read; the task does not.
        let reply = tokio::task::spawn_blocking(move || read(&image, tag, range));
        let outcome = self.server.stats.clone();
        let image = self.image.clone();
        slow.spawn(async move {
            let reply = reply.await.unwrap_or_else(|_| Err((ErrorCode::Unavailable, "the server failed".into())));
            let frame = match reply {
                Ok(frame) => {
                    outcome.answered(range.len as usize);
                    frame
                }
                Err((code, message)) => {
                    outcome.failed();
                    tracing::warn!("image {}: {message}", image.id);
                    FromHost::Error { code, message }.encode(tag)
                }
            };
            // A failed write ends the session where it reads.
            let _ = writer.lock().await.write_all(&frame).await;
            drop((place, memory));
        });
        Ok(())
    }
}

/// Room for a DATA frame of `len` bytes, its header filled in.
fn data_frame(tag: u64, len: u32) -> Vec<u8> {
    let mut frame = vec![0; HEADER + len as usize];
    frame[..HEADER].copy_from_slice(&Header { len, kind: kind::DATA, tag }.encode());
    frame
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
        Part::Leaves(id) => lazyroot_proto::verity::leaves_len(id.algorithm(), object_size(&id)?),
    };
    match range.offset.checked_add(range.len.into()) {
        Some(end) if end <= size => Ok(()),
        _ => Err((ErrorCode::Invalid, format!("{} bytes at {} lie outside of {size}", range.len, range.offset))),
    }
}

/// The whole reply frame to a range that was checked. May block.
fn read(image: &ServedImage, tag: u64, range: Range) -> Result<Vec<u8>, Failure> {
    let unavailable = |error: &dyn std::fmt::Display| (ErrorCode::Unavailable, error.to_string());
    let mut frame = data_frame(tag, range.len);
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
            image.source.read(&id, range.offset, buffer).map_err(|error| unavailable(&error))?;
        }
        Part::Leaves(id) => {
            let leaves = image.source.leaves(&id).map_err(|error| unavailable(&error))?;
            piece(&leaves, buffer)?;
        }
    }
    Ok(frame)
}
