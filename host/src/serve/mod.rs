//! The object server: sessions with guests over any transport.
//!
//! A guest opens every connection and says what it is for ([`Role`]). Data connections are answered from the
//! image that the guest names, if this server serves it; control and stream connections go to the [`Hub`] of
//! the VM whose socket they came in on, if there is one.

mod accept;
mod activity;
mod catalog;
mod conversation;
mod hub;
mod listen;
mod memory;
pub mod message;
mod peer;
pub mod see;
mod session;
mod stats;
mod stream;
mod touched;
mod wire;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lazyroot_proto::frame::{ErrorCode, EventKind, HostMessage, Request, Role};
use lazyroot_proto::reads::Counters;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

pub use crate::text::printable;
pub use accept::{Accept, serve_each};
pub use activity::{Activity, State as ActivityState};
pub use catalog::{Catalog, ServedImage};
pub use hub::{Hub, HubError};
pub use listen::{Endpoint, Listener, MAX_SOCKET_PATH};
pub use memory::{Memory, ProfileUse};
pub use stats::{Snapshot, Stats};
pub use stream::BoxStream;
pub use touched::Touched;
use wire::read_request;
pub use wire::{read_frame, write_frame};

/// Memory for replies that wait for a disk or another server, over all sessions, in KiB. Replies from the page
/// cache do not count: there is at most one small piece of them per session, and it is on its way out.
const SLOW_REPLY_BUDGET_KIB: u32 = 32 << 10;

/// Connections of one listener at a time; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 2048;

/// How long a connection may stay silent before its hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Sessions that are remembered after their end: a guest that reconnects begins a new one.
const ENDED_ACTIVITIES: usize = 8;

/// How long an image stays open, and pinned in its store, after a session about it: longer than a guest takes to
/// find out that its connection is gone and to open another.
const LINGER: Duration = Duration::from_secs(120);

/// Something that happened in a guest.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When, in nanoseconds since the guest's kernel started.
    pub at: u64,
    /// For people, and safe to print; may be empty.
    pub text: String,
}

/// Who connects.
#[derive(Clone, Copy, PartialEq)]
enum Callers {
    Guests,
    Peers,
}

/// Answers guests. Cheap to share; one server has any number of listeners and sessions.
pub struct Server {
    catalog: Arc<Catalog>,
    hub: Option<Arc<Hub>>,
    events: Box<dyn Fn(Event) + Send + Sync>,
    stats: Arc<Stats>,
    activities: Mutex<VecDeque<Arc<Activity>>>,
    /// Data sessions under way.
    running: watch::Sender<usize>,
    slow_replies: Arc<Semaphore>,
}

impl Server {
    /// A server of the images in `catalog`. Connections for running commands go to `hub`; without one they are
    /// refused. `events` hears what guests report; it must not block.
    pub fn new(catalog: Catalog, hub: Option<Arc<Hub>>, events: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self {
            catalog: Arc::new(catalog),
            hub,
            events: Box::new(events),
            stats: Arc::default(),
            activities: Mutex::default(),
            running: watch::Sender::new(0),
            slow_replies: Arc::new(Semaphore::new(SLOW_REPLY_BUDGET_KIB as usize)),
        }
    }

    /// What was served so far, over all sessions.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The data sessions, oldest first: those that run, and the last few that ended.
    pub fn activities(&self) -> Vec<Arc<Activity>> {
        self.activities.lock().expect("no panic under the lock").iter().cloned().collect()
    }

    /// How many data sessions are under way.
    pub fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Waits until no data session is under way: what they read has been remembered then.
    pub async fn idle(&self) {
        let mut running = self.running.subscribe();
        // The sender lives as long as we do.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Takes down a session that begins.
    fn begin(&self, image: &ServedImage) -> Arc<Activity> {
        self.running.send_modify(|running| *running += 1);
        let activity = Arc::new(Activity::new(self.stats.began(), image.id, image.index.clone()));
        let mut activities = self.activities.lock().expect("no panic under the lock");
        let ended = activities.iter().filter(|activity| activity.state().ended).count();
        if ended > ENDED_ACTIVITIES {
            let oldest = activities.iter().position(|activity| activity.state().ended);
            oldest.and_then(|oldest| activities.remove(oldest));
        }
        activities.push_back(activity.clone());
        activity
    }

    /// A session is over.
    fn ended(&self) {
        self.running.send_modify(|running| *running -= 1);
    }

    /// Takes down what a session's guest has counted. A guest counts from its own start, not from the session's: one
    /// that lost its connection goes on from what it had counted before.
    fn counted(&self, session: &Activity, counters: Counters) {
        let before = std::mem::replace(&mut session.state().counters, counters.clone());
        let before = match before == Counters::default() {
            true => self.continued_by(session, &counters).unwrap_or(before),
            false => before,
        };
        self.stats.counted(&counters.since(&before));
    }

    /// What the guest of a new session had counted in the one that it lost, if it has lost one: an ended session of the
    /// same image in which no number was larger. Another guest's first numbers, a moment after its start, are smaller
    /// than those of any that has run.
    fn continued_by(&self, session: &Activity, counters: &Counters) -> Option<Counters> {
        let activities = self.activities.lock().expect("no panic under the lock");
        let others = activities.iter().filter(|other| other.image == session.image && other.number != session.number);
        others.rev().find_map(|other| {
            let mut state = other.state();
            let fits = state.ended && !state.continued && state.counters != Counters::default();
            (fits && counters.covers(&state.counters)).then(|| {
                state.continued = true;
                state.counters.clone()
            })
        })
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
            Ok(Request::Hello(hello)) => match (hello.role, &self.hub) {
                (Role::Peer, _) if callers == Callers::Peers => return peer::run(self, stream).await,
                (Role::Peer, _) => "other lazyroots are not served here: they need --peer or --stdio".to_owned(),
                _ if callers == Callers::Peers => "only other lazyroots are served here".to_owned(),
                (Role::Data(manifest), _) => {
                    // It may have to be found elsewhere.
                    let catalog = self.catalog.clone();
                    let image = tokio::task::spawn_blocking(move || catalog.get(&manifest)).await;
                    match image {
                        Ok(Some(image)) => {
                            session::run(self, image.clone(), stream).await;
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
                (Role::Control, Some(hub)) => return hub.control(stream).await,
                (Role::Stream(number), Some(hub)) => return hub.stream(number, stream),
                (Role::Settings, Some(hub)) => return hub.settings(stream).await,
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
