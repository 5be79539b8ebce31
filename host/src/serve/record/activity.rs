//! What the sessions of a server are doing: what each guest has read, and how long it waited.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use lazyroot_proto::ObjectId;
use lazyroot_proto::frame::EventKind;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::{Counters, Read};

use super::coverage::Coverage;
use super::event::Event;
use crate::store::{Milestone, Trace};

/// Reads that are kept of one session, the first ones: enough for a boot and for a walk through a whole image. About
/// 1.3 MB.
const MAX_READS: usize = 1 << 15;

/// One data session, running or ended.
pub struct Activity {
    /// The server's sessions are counted from 1.
    pub number: u64,
    /// The image's digest.
    pub image: ObjectId,
    /// The image's objects: what positions in reads mean.
    pub index: Arc<ObjectIndex>,
    /// When the session began.
    pub since: SystemTime,
    state: Mutex<State>,
}

/// What is known of a session.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What was read, oldest first.
    pub reads: Vec<Read>,
    /// The parts of the image that they touched, by reads that were not kept too.
    pub coverage: Coverage,
    /// Reads that were told but not kept: there were too many.
    pub more_reads: u64,
    /// What the guest has counted.
    pub counters: Counters,
    /// Whether the guest has gone on in another session: what it counted is part of what it counts there.
    pub continued: bool,
    /// What the guest said of itself.
    pub milestones: Vec<Event>,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub failures: u64,
    /// Whether the session is over.
    pub ended: bool,
}

impl Activity {
    pub(in crate::serve) fn new(number: u64, image: ObjectId, index: Arc<ObjectIndex>) -> Self {
        Self { number, image, index, since: SystemTime::now(), state: Mutex::default() }
    }

    /// What is known now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    /// When the session began, in seconds since 1970.
    pub fn since_epoch(&self) -> u64 {
        self.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// What was read, in a form that can be kept.
    pub fn trace(&self) -> Trace {
        self.trace_of(&self.state())
    }

    pub(in crate::serve) fn trace_of(&self, state: &State) -> Trace {
        let milestone = |event: &Event| {
            let name = match event.kind {
                EventKind::Init => "init",
                EventKind::Mounted => "mounted",
                EventKind::Started => "started",
                EventKind::Warning => "warning",
                EventKind::Fatal => "fatal",
                EventKind::Ready => "ready",
            };
            Milestone { name: name.to_owned(), at: event.at / 1000, text: event.text.clone() }
        };
        Trace {
            milestones: state.milestones.iter().map(milestone).collect(),
            reads: state.reads.clone(),
            more_reads: state.more_reads,
            ..Trace::new(&self.image, self.since_epoch())
        }
    }

    pub(in crate::serve) fn add_reads(&self, reads: Vec<Read>) {
        let mut state = self.state();
        // A guest may name what its image does not have.
        let known = reads.into_iter().filter(|read| self.index.get(read.extent.position).is_some());
        for read in known {
            if read.origin.is_read() {
                state.coverage.add(&read.extent, &self.index);
            }
            match state.reads.len() < MAX_READS {
                true => state.reads.push(read),
                false => state.more_reads += 1,
            }
        }
    }

    pub(in crate::serve) fn count_reply(&self, bytes: u32) {
        let mut state = self.state();
        state.requests += 1;
        state.sent_bytes += u64::from(bytes);
    }
}
