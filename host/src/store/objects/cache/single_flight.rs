//! Fetches under way, each made once however many callers ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use lazyroot_proto::Verified;

use super::key::Key;

/// What a fetch brings, or why it fails.
pub(super) type Outcome = Result<Verified, String>;

/// The fetches under way in this process.
#[derive(Default)]
pub(super) struct SingleFlight {
    under_way: Mutex<HashMap<Key, Arc<Fetch>>>,
}

/// One fetch.
#[derive(Default)]
pub(super) struct Fetch {
    outcome: Mutex<Option<Outcome>>,
    change: Condvar,
}

/// What a caller has to do for what it wants.
pub(super) enum Caller<'a> {
    /// Fetch it.
    Leader(Leader<'a>),
    /// Wait for the caller that fetches it.
    Follower(Arc<Fetch>),
}

/// The duty to finish a fetch. Dropped before that, it tells the followers that the fetch failed.
pub(super) struct Leader<'a> {
    fetches: &'a SingleFlight,
    key: Key,
    fetch: Arc<Fetch>,
}

impl SingleFlight {
    /// Joins the fetch of `key`, or starts it.
    pub(super) fn join(&self, key: Key) -> Caller<'_> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetch) = under_way.get(&key) {
            return Caller::Follower(fetch.clone());
        }
        let fetch = Arc::<Fetch>::default();
        under_way.insert(key, fetch.clone());
        Caller::Leader(Leader { fetches: self, key, fetch })
    }
}

impl Fetch {
    /// Waits until it is finished.
    pub(super) fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => outcome = self.change.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn finish(&self, outcome: Outcome) {
        let mut current = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(outcome);
            self.change.notify_all();
        }
    }
}

impl Leader<'_> {
    /// Wakes the followers. New ones still join until the leader is dropped, which should happen once the bytes are
    /// where they would look first.
    pub(super) fn finish(&self, outcome: Outcome) {
        self.fetch.finish(outcome);
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        self.fetch.finish(Err("whoever fetched it gave up".into()));
        self.fetches.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
