//! All data sessions of a server: those that run, the last few that ended, and what they share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use lazyroot_proto::reads::Counters;
use tokio::sync::{Semaphore, watch};

use crate::serve::images::ServedImage;
use crate::serve::record::{Activity, Event, Totals};

/// Memory for replies that wait for a disk or another server, over all sessions, in KiB. Replies from the page
/// cache do not count: there is at most one small piece of them per session, and it is on its way out.
const SLOW_REPLY_BUDGET_KIB: u32 = 32 << 10;

/// Sessions that are remembered after their end: a guest that reconnects begins a new one.
const ENDED_ACTIVITIES: usize = 8;

/// See the module.
pub(in crate::serve) struct Sessions {
    /// What was sent in them, and in those with other lazyroots.
    pub(in crate::serve) totals: Arc<Totals>,
    /// Hears what guests report; does not block.
    pub(super) events: Box<dyn Fn(Event) + Send + Sync>,
    /// Memory for replies that wait: [`SLOW_REPLY_BUDGET_KIB`].
    pub(super) slow_replies: Arc<Semaphore>,
    activities: Mutex<VecDeque<Arc<Activity>>>,
    /// How many are under way.
    running: watch::Sender<usize>,
}

impl Sessions {
    /// None yet. `events` hears what guests report; it must not block.
    pub(in crate::serve) fn new(events: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self {
            totals: Arc::default(),
            events: Box::new(events),
            slow_replies: Arc::new(Semaphore::new(SLOW_REPLY_BUDGET_KIB as usize)),
            activities: Mutex::default(),
            running: watch::Sender::new(0),
        }
    }

    /// Oldest first: those that run, and the last few that ended.
    pub(in crate::serve) fn activities(&self) -> Vec<Arc<Activity>> {
        self.activities.lock().expect("no panic under the lock").iter().cloned().collect()
    }

    /// How many are under way.
    pub(in crate::serve) fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Waits until none is under way: what they read has been recorded then.
    pub(in crate::serve) async fn idle(&self) {
        let mut running = self.running.subscribe();
        // The sender lives as long as we do.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// Takes down a session that begins.
    pub(super) fn begin(&self, image: &ServedImage) -> Arc<Activity> {
        self.running.send_modify(|running| *running += 1);
        let activity = Arc::new(Activity::new(self.totals.begin_session(), image.id, image.index.clone()));
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
    pub(super) fn end(&self) {
        self.running.send_modify(|running| *running -= 1);
    }

    /// Takes down what a session's guest has counted. A guest counts from its own start, not from the session's: one
    /// that lost its connection goes on from what it had counted before.
    pub(super) fn count(&self, session: &Activity, counters: Counters) {
        let before = std::mem::replace(&mut session.state().counters, counters.clone());
        let before = match before == Counters::default() {
            true => self.continued_by(session, &counters).unwrap_or(before),
            false => before,
        };
        self.totals.add_guest(&counters.since(&before));
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
}
