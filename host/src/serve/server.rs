//! The object server: takes connections in, and gives each to the session that it is for.
//!
//! A guest opens every connection and says what it is for ([`Role`]). Data connections are answered from the
//! image that the guest names, if this server serves it; control and stream connections go to the [`GuestAgent`] of
//! the VM whose socket they came in on, if there is one.

use std::sync::Arc;
use std::time::Duration;

use lazyroot_proto::frame::{ErrorCode, HostMessage, Request, Role};
use tokio::time::timeout;

use super::images::Catalog;
use super::listen::{Listener, serve_each};
use super::record::{Activity, Event, Totals};
use super::session::{GuestAgent, Sessions, data, peer};
use super::wire::frames::{read_request, write_frame};
use super::wire::stream::BoxStream;

/// Connections of one listener at a time; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 2048;

/// How long a connection may stay silent before its hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long an image stays open, and pinned in its store, after a session about it: longer than a guest takes to
/// find out that its connection is gone and to open another.
const LINGER: Duration = Duration::from_secs(120);

/// Who connects.
#[derive(Clone, Copy, PartialEq)]
enum Callers {
    Guests,
    Peers,
}

/// Answers guests and other lazyroots. Cheap to share; one server has any number of listeners and sessions.
pub struct Server {
    catalog: Arc<Catalog>,
    agent: Option<Arc<GuestAgent>>,
    sessions: Sessions,
}

impl Server {
    /// A server of the images in `catalog`. Connections for running commands go to `agent`; without one they are
    /// refused. `events` hears what guests report; it must not block.
    pub fn new(
        catalog: Catalog,
        agent: Option<Arc<GuestAgent>>,
        events: impl Fn(Event) + Send + Sync + 'static,
    ) -> Self {
        Self { catalog: Arc::new(catalog), agent, sessions: Sessions::new(events) }
    }

    /// What was served so far, over all sessions.
    pub fn totals(&self) -> &Totals {
        &self.sessions.totals
    }

    /// The data sessions, oldest first: those that run, and the last few that ended.
    pub fn activities(&self) -> Vec<Arc<Activity>> {
        self.sessions.activities()
    }

    /// How many data sessions are under way.
    pub fn running(&self) -> usize {
        self.sessions.running()
    }

    /// Waits until no data session is under way: what they read has been recorded then.
    pub async fn idle(&self) {
        self.sessions.idle().await;
    }

    /// Accepts connections of guests for ever. Dropping the future ends its sessions.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        self.accept(listener, Callers::Guests).await;
    }

    /// Accepts connections of other lazyroots for ever: they may read every image. Dropping the future ends its
    /// sessions.
    pub async fn serve_peers(self: Arc<Self>, listener: Listener) {
        self.accept(listener, Callers::Peers).await;
    }

    /// Serves another lazyroot on a stream, to its end.
    pub async fn serve_peer(&self, stream: BoxStream) {
        self.connection(stream, Callers::Peers).await;
    }

    async fn accept(self: Arc<Self>, listener: Listener, callers: Callers) {
        serve_each(listener, MAX_CONNECTIONS, |stream| {
            let server = self.clone();
            async move { server.connection(stream, callers).await }
        })
        .await;
    }

    /// One connection, from hello to end. Faults of the peer end the connection, never the server.
    async fn connection(&self, mut stream: BoxStream, callers: Callers) {
        let hello = match timeout(HELLO_DEADLINE, read_request(&mut stream)).await {
            Ok(Ok((header, payload))) => Request::decode(header.kind, &payload),
            // A hypervisor that probes the socket, or a guest that went away: nothing to say.
            Ok(Err(_)) | Err(_) => return,
        };
        let refusal = match hello {
            Ok(Request::Hello(hello)) => match (hello.role, &self.agent) {
                (Role::Peer, _) if callers == Callers::Peers => {
                    return peer::run(&self.catalog, &self.sessions.totals, stream).await;
                }
                (Role::Peer, _) => "other lazyroots are not served here: they need --peer or --stdio".to_owned(),
                _ if callers == Callers::Peers => "only other lazyroots are served here".to_owned(),
                (Role::Data(manifest), _) => {
                    // It may have to be found elsewhere.
                    let catalog = self.catalog.clone();
                    let image = tokio::task::spawn_blocking(move || catalog.get(&manifest)).await;
                    match image {
                        Ok(Some(image)) => {
                            data::run(&self.sessions, image.clone(), stream).await;
                            // A guest that lost its connection comes back soon, and many come and go.
                            tokio::spawn(async move {
                                tokio::time::sleep(LINGER).await;
                                drop(image);
                            });
                            return;
                        }
                        _ => format!("image {manifest} is not served here"),
                    }
                }
                (Role::Control, Some(agent)) => return agent.control(stream).await,
                (Role::Stream(number), Some(agent)) => return agent.stream(number, stream),
                (Role::Settings, Some(agent)) => return agent.settings(stream).await,
                (Role::Control | Role::Stream(_) | Role::Settings, None) => "this server runs no commands".to_owned(),
            },
            Ok(_) => "the first frame must be a hello".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!("refused a connection: {refusal}");
        let refusal = HostMessage::Error { code: ErrorCode::Refused, message: refusal };
        let _ = write_frame(&mut stream, &refusal.encode(0)).await;
    }
}
