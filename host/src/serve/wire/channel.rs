//! The two halves of a session's stream: requests come in, replies go out, in any order and from any task.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lazyroot_proto::frame::FrameError;
use tokio::sync::{Mutex, MutexGuard, Notify};
use tokio::time::timeout;

use super::frames::{read_request, write_frame};
use super::stream::{BoxStream, Sink, Source};

/// How long the other end may take to make room for a reply. One that is paused for longer loses its connection, and
/// asks again on a new one.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);

/// The receiving half.
pub(in crate::serve) struct Requests {
    reader: Source,
    outbox: Arc<Outbox>,
}

/// The sending half.
pub(in crate::serve) struct Outbox {
    writer: Mutex<Sink>,
    /// Told when a reply could not be sent.
    broken: Notify,
}

/// Takes a stream apart.
pub(in crate::serve) fn split(stream: BoxStream) -> (Requests, Arc<Outbox>) {
    let (reader, writer) = stream.halves();
    let outbox = Arc::new(Outbox { writer: Mutex::new(writer), broken: Notify::new() });
    (Requests { reader, outbox: outbox.clone() }, outbox)
}

impl Requests {
    /// The next request and its tag; none when the other end is gone, takes no replies any more, or sends what
    /// `decode` does not understand, which is logged with the words in `about`.
    pub(in crate::serve) async fn next<T>(
        &mut self,
        decode: fn(u8, &[u8]) -> Result<T, FrameError>,
        about: &impl Display,
    ) -> Option<(u64, T)> {
        let (header, payload) = tokio::select! {
            frame = read_request(&mut self.reader) => frame.ok()?,
            () = self.outbox.broken.notified() => return None,
        };
        match decode(header.kind, &payload) {
            Ok(request) => Some((header.tag, request)),
            Err(error) => {
                tracing::warn!("ended a session {about}: {error}");
                None
            }
        }
    }
}

impl Outbox {
    /// Sends whole frames.
    ///
    /// # Errors
    /// If they cannot be sent, or not in time; the session then ends.
    pub(in crate::serve) async fn send(&self, frames: &[u8]) -> io::Result<()> {
        self.in_time(async { write_frame(&mut *self.writer().await, frames).await }).await
    }

    /// To send something in pieces that nothing may come in between of.
    pub(in crate::serve) async fn writer(&self) -> MutexGuard<'_, Sink> {
        self.writer.lock().await
    }

    /// Something that is sent.
    ///
    /// # Errors
    /// As [`Outbox::send`].
    pub(in crate::serve) async fn in_time(&self, write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        let sent = timeout(WRITE_DEADLINE, write).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if sent.is_err() {
            self.broken.notify_one();
        }
        sent
    }
}
