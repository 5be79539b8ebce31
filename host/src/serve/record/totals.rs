//! What a server has served.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lazyroot_proto::ObjectId;
use lazyroot_proto::reads::Counters;

/// Counters that sessions add to.
#[derive(Default)]
pub struct Totals {
    requests: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    objects: Mutex<HashSet<ObjectId>>,
    sessions: AtomicU64,
    guests: Mutex<Counters>,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    /// Requests answered, hellos and pings not among them.
    pub requests: u64,
    /// Payload bytes sent: content, Merkle trees, manifests and indexes.
    pub bytes: u64,
    /// Different objects of which something was sent.
    pub objects: u64,
    /// Requests answered with an error.
    pub failures: u64,
}

impl Totals {
    /// Counts a reply with `bytes` of an object or of the image's metadata.
    pub(in crate::serve) fn count_reply(&self, object: Option<ObjectId>, bytes: u32) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.into(), Ordering::Relaxed);
        if let Some(id) = object {
            self.objects.lock().expect("no panic under the lock").insert(id);
        }
    }

    pub(in crate::serve) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a session that begins. Returns its number.
    pub(in crate::serve) fn begin_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds what a guest has counted since its last report.
    pub(in crate::serve) fn add_guest(&self, news: &Counters) {
        self.guests.lock().expect("no panic under the lock").add(news);
    }

    /// Sessions that have begun.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// What all guests have counted together, those that are gone included.
    pub fn guests(&self) -> Counters {
        self.guests.lock().expect("no panic under the lock").clone()
    }

    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            objects: self.objects.lock().expect("no panic under the lock").len() as u64,
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}
