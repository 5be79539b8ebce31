//! A guest's agent, seen from the host: it opens streams when asked to on its control connection, and shuts the guest
//! down.

use std::collections::HashMap;
use std::sync::Mutex;

use lazyroot_proto::frame::HostMessage;
use lazyroot_proto::settings::Settings;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};

use crate::serve::wire::frames::write_frame;
use crate::serve::wire::stream::BoxStream;

/// Messages to the guest that may wait to be written.
const QUEUE: usize = 16;

type Messages = mpsc::Sender<HostMessage<'static>>;

/// One VM's control connection, the streams that were asked for, and its settings.
#[derive(Default)]
pub struct GuestAgent {
    /// As they go over the wire.
    settings: Vec<u8>,
    /// To the newest control connection, while there is one.
    control: watch::Sender<Option<Messages>>,
    expected: Mutex<HashMap<u64, oneshot::Sender<BoxStream>>>,
}

/// The guest did not open the stream.
#[derive(Debug, thiserror::Error)]
#[error("the guest's agent went away")]
pub struct AgentGone;

impl GuestAgent {
    /// One whose guest gets these settings.
    pub fn with_settings(settings: &Settings) -> Self {
        Self { settings: settings.encode(), ..Self::default() }
    }

    /// Waits for the guest's agent, asks it for a stream, and waits until that is there.
    ///
    /// # Errors
    /// If the control connection ends first.
    pub async fn open_stream(&self) -> Result<BoxStream, AgentGone> {
        let messages = self.messages().await;
        let (sender, stream) = oneshot::channel();
        // Not to be guessed by a program in the guest, which could take the stream for itself.
        let number = getrandom::u64().expect("the system always has random numbers");
        self.expected.lock().expect("no panic under the lock").insert(number, sender);
        messages.send(HostMessage::OpenStream(number)).await.map_err(|_| AgentGone)?;
        // Held on to, it would keep a control connection that has been replaced.
        drop(messages);
        stream.await.map_err(|_| AgentGone)
    }

    /// Waits until the guest's agent is there.
    pub async fn connected(&self) {
        self.messages().await;
    }

    /// Asks the guest to shut down, if its agent is there.
    ///
    /// # Errors
    /// If it is not.
    pub async fn power_off(&self) -> Result<(), AgentGone> {
        let messages = self.control.borrow().clone().ok_or(AgentGone)?;
        messages.send(HostMessage::PowerOff).await.map_err(|_| AgentGone)
    }

    async fn messages(&self) -> Messages {
        let mut control = self.control.subscribe();
        let connected = control.wait_for(Option::is_some).await.expect("the sender is ours and lives as long as we do");
        connected.clone().expect("waited for")
    }

    /// A guest's control connection, until it ends or the guest opens another: a guest that lost its connection may
    /// know before we do.
    pub(in crate::serve) async fn control(&self, mut stream: BoxStream) {
        let welcome = HostMessage::Welcome { manifest_size: 0, index_size: 0, profile_size: 0 };
        if write_frame(&mut stream, &welcome.encode(0)).await.is_err() {
            return;
        }
        let (messages, mut queue) = mpsc::channel(QUEUE);
        // Only the agent's side here holds a strong one: replaced there, our queue ends.
        let ours = messages.downgrade();
        self.control.send_replace(Some(messages));
        let mut byte = [0];
        loop {
            tokio::select! {
                message = queue.recv() => match message {
                    Some(message) if write_frame(&mut stream, &message.encode(0)).await.is_ok() => (),
                    _ => break,
                },
                // The guest says nothing here but goodbye.
                _ = stream.read(&mut byte) => break,
            }
        }
        self.control.send_if_modified(|current| {
            let ended = current.as_ref().zip(ours.upgrade()).is_some_and(|(current, ours)| current.same_channel(&ours));
            if ended {
                *current = None;
                // Nobody will open them any more.
                self.expected.lock().expect("no panic under the lock").clear();
            }
            ended
        });
    }

    /// A guest that asks for its settings.
    pub(in crate::serve) async fn settings(&self, mut stream: BoxStream) {
        // A guest that lost its connection asks again.
        let _ = write_frame(&mut stream, &HostMessage::Settings(&self.settings).encode(0)).await;
        // It closes when it has them. To close here might cut them off on the way.
        let _ = stream.read(&mut [0]).await;
    }

    /// A stream that the guest opened; dropped if nobody asked for it.
    pub(in crate::serve) fn stream(&self, number: u64, stream: BoxStream) {
        let waiting = self.expected.lock().expect("no panic under the lock").remove(&number);
        if let Some(waiting) = waiting {
            // Whoever asked may have given up.
            let _ = waiting.send(stream);
        }
    }
}
