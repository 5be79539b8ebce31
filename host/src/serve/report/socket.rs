//! The socket by which other commands ask a process what its sessions did. Each VM, mount and server has one in its
//! folder, which is the user's alone. A connection is one question and one answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::figures::{Kind, ServerStats};
use crate::serve::listen::{Endpoint, Listener, serve_each};
use crate::serve::record::Activity;
use crate::serve::server::Server;
use crate::serve::wire::ipc::{receive, send};
use crate::serve::wire::stream::BoxStream;
use crate::store::Trace;

/// The socket's name.
const NAME: &str = "see";

/// What is left of a VM that was started to stay.
const KEPT_STATS: &str = "stats.json";
const KEPT_TRACE: &str = "trace";

/// Questions at a time.
const MAX_CONNECTIONS: usize = 64;

/// How long a process may take to answer: it does at once, unless it hangs or is stopped.
const AT_ONCE: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    Stats,
    /// The trace of the session with this number; the newest one's without.
    Trace(Option<u64>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Stats(ServerStats),
    Trace(Option<Trace>),
}

/// Answers for a server.
pub struct Reporter {
    server: Arc<Server>,
    kind: Kind,
    name: String,
}

impl Reporter {
    /// One for `server`, which is for `name`.
    pub fn new(server: Arc<Server>, kind: Kind, name: impl Into<String>) -> Self {
        Self { server, kind, name: name.into() }
    }

    /// Binds the socket in a folder.
    ///
    /// # Errors
    /// If the folder's path is too long for a socket.
    pub fn listen(dir: &Path) -> Result<Listener> {
        Listener::bind(&Endpoint::Unix(dir.join(NAME)))
    }

    /// The server's figures now.
    pub fn stats(&self) -> ServerStats {
        ServerStats::of(&self.server, self.kind, &self.name)
    }

    /// What was read in the session with this number, or in the newest one that read something.
    pub fn trace(&self, session: Option<u64>) -> Option<Trace> {
        let activities = self.server.activities();
        let is_chosen = |activity: &&Arc<Activity>| session.is_none_or(|number| activity.number == number);
        let mut traces = activities.iter().rev().filter(is_chosen).map(|activity| activity.trace());
        let newest = traces.next()?;
        match newest.reads.is_empty() {
            true => Some(traces.find(|trace| !trace.reads.is_empty()).unwrap_or(newest)),
            false => Some(newest),
        }
    }

    /// Leaves the answers in a folder, for those who ask when the server is gone ([`kept_stats`], [`kept_trace`]).
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keep(&self, dir: &Path) -> Result<()> {
        let write = || {
            fs::write(dir.join(KEPT_STATS), serde_json::to_vec(&self.stats())?)?;
            if let Some(trace) = self.trace(None) {
                fs::write(dir.join(KEPT_TRACE), trace.to_bytes())?;
            }
            Ok::<_, anyhow::Error>(())
        };
        write().with_context(|| format!("cannot write to {}", dir.display()))
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

    async fn answer(&self, stream: &mut BoxStream) -> Result<()> {
        let answer = match receive(stream).await? {
            Question::Stats => Answer::Stats(self.stats()),
            Question::Trace(session) => Answer::Trace(self.trace(session)),
        };
        send(stream, &answer).await
    }
}

/// A process that answered.
#[derive(Clone, Debug)]
pub struct ServingProcess {
    /// Its folder.
    pub dir: PathBuf,
    /// Its figures.
    pub stats: ServerStats,
}

async fn ask(dir: &Path, question: &Question) -> Result<Answer> {
    let path = dir.join(NAME);
    let answer = async {
        let mut stream = UnixStream::connect(&path).await?;
        send(&mut stream, question).await?;
        receive(&mut stream).await
    };
    let answer = timeout(AT_ONCE, answer).await.unwrap_or_else(|_| bail!("no answer"));
    answer.with_context(|| format!("its lazyroot does not answer at {}", path.display()))
}

/// Asks the process with this folder for its figures.
///
/// # Errors
/// If there is none, or it does not answer within a second.
pub async fn ask_stats(dir: &Path) -> Result<ServerStats> {
    match ask(dir, &Question::Stats).await? {
        Answer::Stats(stats) => Ok(stats),
        Answer::Trace(_) => bail!("its lazyroot is another version"),
    }
}

/// Asks the process with this folder for a trace of the session with this number, or of the newest.
///
/// # Errors
/// As [`ask_stats`], and if there is no such session.
pub async fn ask_trace(dir: &Path, session: Option<u64>) -> Result<Trace> {
    match ask(dir, &Question::Trace(session)).await? {
        Answer::Trace(trace) => trace.context("it has no such session"),
        Answer::Stats(_) => bail!("its lazyroot is another version"),
    }
}

/// The figures that a server left in its folder.
pub fn kept_stats(dir: &Path) -> Option<ServerStats> {
    serde_json::from_slice(&fs::read(dir.join(KEPT_STATS)).ok()?).ok()
}

/// The trace that a server left in its folder.
pub fn kept_trace(dir: &Path) -> Option<Trace> {
    Trace::from_bytes(&fs::read(dir.join(KEPT_TRACE)).ok()?)
}

/// Removes the folders in `parent` of processes that were killed: nobody listens at their sockets any more.
pub fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let connected = std::os::unix::net::UnixStream::connect(entry.path().join(NAME));
        if connected.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// All processes with a folder in `parent` that answer, sorted by name. All are asked at once.
///
/// # Errors
/// If `parent` cannot be read.
pub async fn ask_all(parent: &Path) -> Result<Vec<ServingProcess>> {
    let mut questions = JoinSet::new();
    for entry in fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))? {
        let dir = entry?.path();
        questions.spawn(async move { ask_stats(&dir).await.ok().map(|stats| ServingProcess { dir, stats }) });
    }
    let mut processes: Vec<ServingProcess> = questions.join_all().await.into_iter().flatten().collect();
    processes.sort_by(|a, b| a.stats.name.cmp(&b.stats.name));
    Ok(processes)
}
