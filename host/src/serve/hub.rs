//! What the host wants of a guest: streams, which the guest opens when asked to on its control connection.

use std::collections::HashMap;
use std::sync::Mutex;

use lazyroot_proto::frame::FromHost;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};

use super::{BoxStream, write_frame};

/// Messages to the guest that may wait while its control connection is replaced.
const QUEUE: usize = 16;

/// One VM's control connection and the streams that were asked for.
pub struct Hub {
    messages: mpsc::Sender<FromHost<'static>>,
    /// Taken by the control connection while there is one.
    queue: tokio::sync::Mutex<mpsc::Receiver<FromHost<'static>>>,
    expected: Mutex<Expected>,
    connected: watch::Sender<bool>,
}

#[derive(Default)]
struct Expected {
    next: u64,
    streams: HashMap<u64, oneshot::Sender<BoxStream>>,
}

/// The guest did not open the stream.
#[derive(Debug, thiserror::Error)]
#[error("the guest's agent went away")]
pub struct HubError;

impl Default for Hub {
    fn default() -> Self {
        let (messages, queue) = mpsc::channel(QUEUE);
        Self {
            messages,
            queue: tokio::sync::Mutex::new(queue),
            expected: Mutex::default(),
            connected: watch::Sender::new(false),
        }
    }
}

impl Hub {
    /// Waits until the guest's agent has connected once.
    pub async fn connected(&self) {
        // The sender is ours: it cannot go away.
        let _ = self.connected.subscribe().wait_for(|connected| *connected).await;
    }

    /// Asks the guest for a stream and waits until it is there.
    ///
    /// # Errors
    /// If the guest's connection ends first.
    pub async fn open_stream(&self) -> Result<BoxStream, HubError> {
        let (sender, stream) = oneshot::channel();
        let number = {
            let mut expected = self.expected.lock().expect("no panic under the lock");
            expected.next += 1;
            let number = expected.next;
            expected.streams.insert(number, sender);
            number
        };
        self.messages.send(FromHost::OpenStream(number)).await.map_err(|_| HubError)?;
        stream.await.map_err(|_| HubError)
    }

    /// Asks the guest to end every process, sync and power off.
    pub async fn power_off(&self) {
        // Without a guest there is nothing to power off.
        let _ = self.messages.send(FromHost::PowerOff).await;
    }

    /// A guest's control connection, until it ends.
    pub(super) async fn control(&self, mut stream: BoxStream) {
        // A guest that lost its connection opens another; the old one ends when it is next written to or read.
        let mut queue = self.queue.lock().await;
        let welcome = FromHost::Welcome { manifest_size: 0, index_size: 0 };
        if write_frame(&mut stream, &welcome.encode(0)).await.is_err() {
            return;
        }
        self.connected.send_replace(true);
        loop {
            let mut byte = [0];
            tokio::select! {
                message = queue.recv() => {
                    let Some(message) = message else { return };
                    if write_frame(&mut stream, &message.encode(0)).await.is_err() {
                        return;
                    }
                }
                // The guest says nothing here but goodbye.
                _ = stream.read(&mut byte) => return,
            }
        }
    }

    /// A stream that the guest opened; dropped if nobody asked for it.
    pub(super) async fn stream(&self, number: u64, stream: BoxStream) {
        let waiting = self.expected.lock().expect("no panic under the lock").streams.remove(&number);
        if let Some(waiting) = waiting {
            let _ = waiting.send(stream);
        }
    }
}
