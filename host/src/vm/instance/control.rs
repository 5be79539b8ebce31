//! The socket in a VM's folder by which other commands reach the lazyroot that runs it.
//!
//! A connection is one question and one answer ([`crate::serve::ipc`]). After the answer to [`Ask::Stream`] it is a byte stream to the guest's agent. The socket is in a folder that is the user's alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::serve::ipc::{receive, send};
use crate::serve::{Endpoint, GuestAgent, Listener, serve_each};
use crate::vm::instance::status::{Status, Watch};

/// The socket's name.
const NAME: &str = "ctl";

/// Connections at a time: each command in the guest is one while it runs.
const MAX_CONNECTIONS: usize = 1024;

/// Orders that may wait for the VM.
const QUEUE: usize = 16;

/// What another command wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// A stream to the guest's agent; waits until there is one.
    Stream,
    /// How the VM is.
    Status,
    /// End it: gracefully within so many seconds, then hard.
    Stop(u64),
    /// Halt its processors.
    Pause,
    /// Let them go on.
    Resume,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done,
    Status(Box<Status>),
    Refused(String),
}

/// What the VM is to do, and where to say whether it did.
pub struct Order {
    /// What.
    pub what: OrderKind,
    /// Hears the outcome.
    pub done: oneshot::Sender<Result<()>>,
}

/// Kinds of [`Order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// End, and be ended after this long.
    Stop(Duration),
    /// Halt.
    Pause,
    /// Go on.
    Resume,
}

/// Serves a VM's control socket.
pub struct Control {
    agent: Arc<GuestAgent>,
    watch: Arc<Watch>,
    orders: mpsc::Sender<Order>,
}

impl Control {
    /// One for the VM behind `agent` and `watch`, and the orders that come in.
    pub fn new(agent: Arc<GuestAgent>, watch: Arc<Watch>) -> (Self, mpsc::Receiver<Order>) {
        let (orders, received) = mpsc::channel(QUEUE);
        (Self { agent, watch, orders }, received)
    }

    /// Binds the socket in a VM's folder.
    ///
    /// # Errors
    /// If the folder's path is too long for a socket.
    pub fn listen(dir: &Path) -> Result<Listener> {
        Listener::bind(&Endpoint::Unix(dir.join(NAME)))
    }

    /// Answers for ever. Dropping the future ends its connections.
    pub async fn serve(self, listener: Listener) {
        let this = Arc::new(self);
        serve_each(listener, MAX_CONNECTIONS, |mut stream| {
            let this = this.clone();
            async move {
                // Whoever asked may be gone by now.
                let _ = this.answer(&mut stream).await;
            }
        })
        .await;
    }

    async fn answer(&self, stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> Result<()> {
        let outcome = match receive(stream).await? {
            Ask::Stream => match self.open_stream().await {
                Ok(guest) => {
                    send(stream, &Answer::Done).await?;
                    return Ok(join(stream, guest).await?);
                }
                Err(error) => Err(error),
            },
            Ask::Status => return send(stream, &Answer::Status(Box::new(self.watch.status()))).await,
            Ask::Stop(seconds) => self.order(OrderKind::Stop(Duration::from_secs(seconds))).await,
            Ask::Pause => self.order(OrderKind::Pause).await,
            Ask::Resume => self.order(OrderKind::Resume).await,
        };
        let answer = outcome.map_or_else(|error| Answer::Refused(format!("{error:#}")), |()| Answer::Done);
        send(stream, &answer).await
    }

    async fn open_stream(&self) -> Result<crate::serve::BoxStream> {
        self.watch.check_running()?;
        Ok(self.agent.open_stream().await?)
    }

    async fn order(&self, what: OrderKind) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        let gone = || anyhow::anyhow!("the VM is ending");
        self.orders.send(Order { what, done }).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// Passes bytes on both ways until either end closes: both then do. No service of the agent's closes one direction
/// only, and not every hypervisor would pass that on.
async fn join(
    a: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    b: impl AsyncReadExt + AsyncWriteExt + Unpin,
) -> std::io::Result<()> {
    let (mut from_a, mut to_a) = tokio::io::split(a);
    let (mut from_b, mut to_b) = tokio::io::split(b);
    tokio::select! {
        ended = tokio::io::copy(&mut from_a, &mut to_b) => ended.map(|_| ()),
        ended = tokio::io::copy(&mut from_b, &mut to_a) => ended.map(|_| ()),
    }
}

/// Asks the VM in `dir` for something; the connection goes on as a stream after [`Ask::Stream`].
///
/// # Errors
/// If nobody answers, or the VM refuses.
async fn ask(dir: &Path, what: &Ask) -> Result<(Answer, UnixStream)> {
    let path: PathBuf = dir.join(NAME);
    let mut stream = UnixStream::connect(&path)
        .await
        .with_context(|| format!("its lazyroot does not listen at {}", path.display()))?;
    send(&mut stream, what).await?;
    match receive(&mut stream).await.context("it ended")? {
        Answer::Refused(why) => bail!("{why}"),
        answer => Ok((answer, stream)),
    }
}

/// A stream to the agent of the VM in `dir`.
///
/// # Errors
/// If the VM ends before its agent opens one.
pub async fn open_stream(dir: &Path) -> Result<UnixStream> {
    Ok(ask(dir, &Ask::Stream).await?.1)
}

/// How the VM in `dir` is.
///
/// # Errors
/// If nobody answers within a second: it answers at once, unless its lazyroot hangs or is stopped.
pub async fn status(dir: &Path) -> Result<Status> {
    const AT_ONCE: Duration = Duration::from_secs(1);
    match tokio::time::timeout(AT_ONCE, ask(dir, &Ask::Status)).await.context("its lazyroot does not answer")??.0 {
        Answer::Status(status) => Ok(*status),
        _ => bail!("its lazyroot is another version"),
    }
}

/// Gives an order to the VM in `dir`.
///
/// # Errors
/// If nobody answers, or it cannot be done.
pub async fn order(dir: &Path, what: OrderKind) -> Result<()> {
    let what = match what {
        OrderKind::Stop(within) => Ask::Stop(within.as_secs()),
        OrderKind::Pause => Ask::Pause,
        OrderKind::Resume => Ask::Resume,
    };
    ask(dir, &what).await.map(|_| ())
}
