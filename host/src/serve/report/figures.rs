//! Figures of sessions. Field names are those of `lazyroot stats --format json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lazyroot_proto::reads::{Counters, Histogram, Origin};
use serde::{Deserialize, Serialize};

use crate::human::percent;
use crate::serve::record::{Activity, Coverage};
use crate::serve::server::Server;

/// Who a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One VM: all sessions are the same guest's.
    Vm,
    /// One mount on this machine, likewise.
    Mount,
    /// Any number of guests.
    Server,
}

/// Figures of one process that serves objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerStats {
    /// Who it is for.
    pub kind: Kind,
    /// The VM's name, the mount's folder, or `serve-PID`.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// The guests that it serves and the last few that are gone; of a VM or mount one at most.
    pub sessions: Vec<SessionStats>,
}

/// Figures of one guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SessionStats {
    /// The number of its first session, from 1.
    pub session: u64,
    /// The image's digest.
    pub image: String,
    /// When the session began, in seconds since 1970.
    pub since: u64,
    /// Whether it is over.
    pub ended: bool,
    /// Payload bytes sent: content, Merkle trees, manifest, index and profile.
    pub sent_bytes: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub failures: u64,
    /// Sizes of the image's objects together, in bytes.
    pub image_bytes: u64,
    /// How many objects the image has.
    pub image_objects: u64,
    /// Bytes of the image that programs have read, each counted once, in blocks of 4 KiB.
    pub touched_bytes: u64,
    /// Objects of which they read something.
    pub touched_objects: u64,
    /// What the guest has counted.
    pub guest: GuestStats,
}

/// What a guest's data plane has counted since it started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuestStats {
    /// Bytes that were checked against a digest.
    pub verified_bytes: u64,
    /// Reads by where their bytes came from ([`Origin::name`]).
    pub reads: BTreeMap<String, Reads>,
    /// What the boot profile put where programs find it by themselves: whether they did is not known.
    pub unseen: Reads,
    /// Bytes that the boot profile brought and the guest watches, a sample of all.
    pub profile_bytes: u64,
    /// Of those, bytes that programs have read since.
    pub profile_used_bytes: u64,
    /// Bytes that came along with others and went into the page cache.
    pub neighbour_bytes: u64,
    /// How long LOOKUPs took.
    pub lookup: Latency,
    /// How long READs took.
    pub read: Latency,
    /// How long the host's replies took that a read waited for.
    pub wire: Latency,
}

/// Reads from one origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// How many.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// How long something took, in microseconds: upper bounds, less than twice the true value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How often.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// None took longer.
    pub max: u64,
}

impl From<&Histogram> for Latency {
    fn from(histogram: &Histogram) -> Self {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| histogram.quantile(share));
        Self { count: histogram.count(), p50, p99, max }
    }
}

impl From<&Counters> for GuestStats {
    fn from(counters: &Counters) -> Self {
        let reads = |origin: Origin| Reads {
            count: counters.reads[origin as usize],
            bytes: counters.read_bytes[origin as usize],
        };
        let asked_for = Origin::ALL.into_iter().filter(|origin| *origin != Origin::Preloaded);
        Self {
            verified_bytes: counters.verified_bytes,
            reads: asked_for.map(|origin| (origin.name().to_owned(), reads(origin))).collect(),
            unseen: reads(Origin::Preloaded),
            profile_bytes: counters.profile_bytes,
            profile_used_bytes: counters.profile_used_bytes,
            neighbour_bytes: counters.neighbour_bytes,
            lookup: (&counters.lookup).into(),
            read: (&counters.read).into(),
            wire: (&counters.wire).into(),
        }
    }
}

impl GuestStats {
    /// Reads from one origin.
    pub fn reads_from(&self, origin: Origin) -> Reads {
        self.reads.get(origin.name()).copied().unwrap_or_default()
    }

    /// Reads from anywhere.
    pub fn all_reads(&self) -> Reads {
        let add = |sum: Reads, one: &Reads| Reads { count: sum.count + one.count, bytes: sum.bytes + one.bytes };
        self.reads.values().fold(Reads::default(), add)
    }

    /// Of the bytes that the boot profile brought and the guest watches, those that nobody has read.
    pub fn profile_wasted_bytes(&self) -> u64 {
        self.profile_bytes.saturating_sub(self.profile_used_bytes)
    }
}

impl SessionStats {
    /// What share of the image's bytes was read, in percent.
    pub fn touched_percent(&self) -> f64 {
        percent(self.touched_bytes, self.image_bytes)
    }
}

impl ServerStats {
    /// Those of a server now.
    pub fn of(server: &Server, kind: Kind, name: &str) -> Self {
        let activities = server.activities();
        let sessions = match kind {
            // Sessions that are long over are forgotten: what was sent in them is in the server's sums.
            Kind::Vm | Kind::Mount => {
                let all = server.totals().snapshot();
                let sums = |stats| SessionStats {
                    sent_bytes: all.bytes,
                    requests: all.requests,
                    failures: all.failures,
                    ..stats
                };
                session(&activities).map(sums).into_iter().collect()
            }
            Kind::Server => activities.chunks(1).filter_map(session).collect(),
        };
        Self { kind, name: name.to_owned(), pid: std::process::id(), sessions }
    }
}

/// Figures of one guest in its sessions, the oldest first; `None` without one.
fn session(activities: &[Arc<Activity>]) -> Option<SessionStats> {
    let (first, last) = (activities.first()?, activities.last()?);
    let mut stats = SessionStats {
        session: first.number,
        image: first.image.to_string(),
        since: first.since_epoch(),
        image_bytes: first.index.total_bytes(),
        image_objects: first.index.entries().len() as u64,
        ..SessionStats::default()
    };
    let mut coverage = Coverage::default();
    let mut counters = Counters::default();
    for activity in activities {
        let state = activity.state();
        stats.sent_bytes += state.sent_bytes;
        stats.requests += state.requests;
        stats.failures += state.failures;
        coverage.extend(&state.coverage);
        // A guest counts from its own start; a session that is new has not heard yet.
        if state.counters != Counters::default() {
            counters = state.counters.clone();
        }
    }
    stats.ended = last.state().ended;
    (stats.touched_bytes, stats.touched_objects) = (coverage.bytes(&first.index), coverage.objects());
    stats.guest = (&counters).into();
    Some(stats)
}
