//! Verified bytes by key (a position in the index, for whole objects), each fetched by one caller at a time.
//!
//! A caller that asks meanwhile gets the same outcome. A failure is not kept, so that a later read tries again. The least
//! recently used entries are evicted when the budget is spent, except pinned ones: those wait to be asked for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use lazyroot_proto::reads::Origin;

use crate::content::error::ReadResult;

/// See the module.
pub struct Cache<K = u32> {
    budget: usize,
    /// Never held while a fetch is waited for.
    state: Mutex<State<K>>,
}

struct State<K> {
    slots: HashMap<K, Slot>,
    /// Of the slots that are not pinned.
    bytes: usize,
    clock: u64,
}

/// What a fetch will have brought; `None` if it was given up.
type Outcome = OnceLock<Option<ReadResult>>;

struct Slot {
    outcome: Arc<Outcome>,
    used: u64,
    /// 0 until the bytes are here.
    bytes: usize,
    /// Who had it fetched; [`Origin::Cache`] once a program has asked for it.
    origin: Origin,
    pinned: bool,
}

impl<K: Copy + Eq + Hash> State<K> {
    /// Returns the bytes that were pinned.
    fn remove(&mut self, key: K) -> usize {
        match self.slots.remove(&key) {
            Some(slot) if slot.pinned => slot.bytes,
            Some(slot) => {
                self.bytes -= slot.bytes;
                0
            }
            None => 0,
        }
    }
}

impl<K: Copy + Eq + Hash> Cache<K> {
    /// Keeps about `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::new(State { slots: HashMap::new(), bytes: 0, clock: 0 }) }
    }

    /// The bytes at `key`, fetched on behalf of `origin` unless they are here or on their way.
    pub fn get_or_fetch(&self, key: K, origin: Origin, fetch: impl FnOnce() -> ReadResult) -> ReadResult {
        loop {
            match self.look_up(key, origin) {
                Ok(own) => return own.finish(fetch()),
                Err(other) => {
                    if let Some(outcome) = other.wait() {
                        return outcome.clone();
                    }
                }
            }
        }
    }

    /// Has the caller fetch the bytes at `key` on behalf of `origin`; `None` if they are here or on their way. A caller that
    /// has begun several must not wait for what others fetch before it has finished its own.
    pub fn begin(&self, key: K, origin: Origin) -> Option<Fetch<'_, K>> {
        self.look_up(key, origin).ok()
    }

    /// The right to fetch what is at `key`, or what somebody else has fetched or is fetching.
    fn look_up(&self, key: K, origin: Origin) -> Result<Fetch<'_, K>, Arc<Outcome>> {
        let mut state = self.lock();
        state.clock += 1;
        let used = state.clock;
        match state.slots.entry(key) {
            Entry::Occupied(mut slot) => {
                slot.get_mut().used = used;
                Err(slot.get().outcome.clone())
            }
            Entry::Vacant(slot) => {
                let outcome = Arc::<Outcome>::default();
                slot.insert(Slot { outcome: outcome.clone(), used, bytes: 0, origin, pinned: false });
                Ok(Fetch { cache: self, key, outcome })
            }
        }
    }

    /// A program asks for the bytes at `key` now. Returns on whose behalf they were fetched, if they are here or on their way.
    pub fn claim(&self, key: K) -> Option<Origin> {
        let mut state = self.lock();
        let slot = state.slots.get_mut(&key)?;
        Some(std::mem::replace(&mut slot.origin, Origin::Cache))
    }

    /// Whether the bytes at `key` are here or on their way.
    pub fn contains(&self, key: K) -> bool {
        self.lock().slots.contains_key(&key)
    }

    /// Keeps the bytes at `key` until they are removed; returns how many there are, 0 if they are not here or pinned already.
    pub fn pin(&self, key: K) -> usize {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(&key).filter(|slot| !slot.pinned) else { return 0 };
        slot.pinned = true;
        let bytes = slot.bytes;
        state.bytes -= bytes;
        bytes
    }

    /// Removes the bytes at `key`; returns how many of them were pinned.
    pub fn remove(&self, key: K) -> usize {
        self.lock().remove(key)
    }

    /// Removes all that is pinned; returns its size in bytes.
    pub fn remove_pinned(&self) -> usize {
        let mut state = self.lock();
        let pinned = state.slots.values().filter(|slot| slot.pinned).map(|slot| slot.bytes).sum();
        state.slots.retain(|_, slot| !slot.pinned);
        pinned
    }

    /// Accounts for what a fetch has brought; nothing is kept if that is `None`.
    fn settle(&self, key: K, outcome: &Arc<Outcome>, bytes: Option<usize>) {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(&key).filter(|slot| Arc::ptr_eq(&slot.outcome, outcome)) else { return };
        match bytes {
            Some(bytes) => {
                slot.bytes = bytes;
                state.bytes += bytes;
            }
            None => {
                state.remove(key);
            }
        }
        // Rarely more than a few slots to look through: entries are evicted as fast as they are added.
        while state.bytes > self.budget {
            let loose = |(other, slot): &(&K, &Slot)| **other != key && slot.bytes > 0 && !slot.pinned;
            let oldest = state.slots.iter().filter(loose).min_by_key(|(_, slot)| slot.used);
            let Some(oldest) = oldest.map(|(oldest, _)| *oldest) else { break };
            state.remove(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().expect("no panic under the lock")
    }
}

/// A fetch that is under way. If it is dropped unfinished, one of the callers that wait for it fetches instead.
pub struct Fetch<'a, K: Copy + Eq + Hash> {
    cache: &'a Cache<K>,
    key: K,
    outcome: Arc<Outcome>,
}

impl<K: Copy + Eq + Hash> Fetch<'_, K> {
    /// Hands the outcome to every caller that waits for it.
    pub fn finish(self, result: ReadResult) -> ReadResult {
        self.settle(Some(result.clone()));
        result
    }

    fn settle(&self, result: Option<ReadResult>) {
        let bytes = result.as_ref().and_then(|result| result.as_ref().ok()).map(|data| data.len());
        // Before the others see the outcome: one that asks again after a failure finds an empty slot.
        self.cache.settle(self.key, &self.outcome, bytes);
        let _ = self.outcome.set(result);
    }
}

impl<K: Copy + Eq + Hash> Drop for Fetch<'_, K> {
    fn drop(&mut self) {
        if self.outcome.get().is_none() {
            self.settle(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::error::ReadError;
    use lazyroot_proto::verified::{Unverified, Verified};
    use lazyroot_proto::{Algorithm, verity};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    fn verified(bytes: &[u8]) -> ReadResult {
        Ok(Unverified::from(bytes.to_vec()).verify_object(&verity::digest(Algorithm::Sha256, bytes)).unwrap())
    }

    fn corrupt() -> ReadResult {
        Err(ReadError::Corrupt(verity::digest(Algorithm::Sha256, b"x")))
    }

    /// Bytes that the cache believes to keep, and those in its slots.
    fn kept(cache: &Cache) -> (usize, usize) {
        let state = cache.lock();
        (state.bytes, state.slots.values().filter(|slot| !slot.pinned).map(|slot| slot.bytes).sum())
    }

    fn get(cache: &Cache, position: u32, len: usize) -> Verified {
        cache.get_or_fetch(position, Origin::Host, || verified(&vec![0; len])).unwrap()
    }

    #[test]
    fn callers_at_the_same_time_share_one_fetch_and_its_outcome() {
        for outcome in [verified(&[7]), corrupt()] {
            let cache = Cache::new(100);
            let fetches = AtomicUsize::new(0);
            let fetch = || {
                fetches.fetch_add(1, Ordering::Relaxed);
                // Until everybody asks for it: each of them holds the outcome, and so does the slot.
                while Arc::strong_count(&cache.lock().slots[&1].outcome) < 5 {
                    thread::sleep(Duration::from_millis(1));
                }
                outcome.clone()
            };
            thread::scope(|scope| {
                let read = || cache.get_or_fetch(1, Origin::Host, fetch);
                let readers: Vec<_> = (0..4).map(|_| scope.spawn(read)).collect();
                for reader in readers {
                    assert_eq!(reader.join().unwrap().is_ok(), outcome.is_ok());
                }
            });
            assert_eq!(fetches.into_inner(), 1);
        }
    }

    #[test]
    fn what_one_has_begun_others_wait_for_or_do_themselves_if_it_is_given_up() {
        for given_up in [false, true] {
            let cache = Cache::new(100);
            let begun = cache.begin(1, Origin::Neighbour).unwrap();
            assert!(cache.begin(1, Origin::Host).is_none() && cache.contains(1));
            thread::scope(|scope| {
                let reader = scope.spawn(|| cache.get_or_fetch(1, Origin::Host, || verified(&[2])));
                while Arc::strong_count(&cache.lock().slots[&1].outcome) < 3 {
                    thread::sleep(Duration::from_millis(1));
                }
                if given_up {
                    drop(begun);
                } else {
                    begun.finish(verified(&[1])).unwrap();
                }
                assert_eq!(*reader.join().unwrap().unwrap(), [if given_up { 2 } else { 1 }]);
            });
            assert_eq!(kept(&cache), (1, 1));
        }
    }

    #[test]
    fn a_failure_is_forgotten_and_a_success_kept() {
        let cache = Cache::new(100);
        assert!(cache.get_or_fetch(1, Origin::Host, corrupt).is_err());
        assert_eq!(kept(&cache), (0, 0));
        assert_eq!(&*get(&cache, 1, 10), [0; 10]);
        assert_eq!(&*cache.get_or_fetch(1, Origin::Host, || unreachable!()).unwrap(), [0; 10]);
        assert_eq!(kept(&cache), (10, 10));
    }

    #[test]
    fn the_least_recently_used_are_evicted_when_the_budget_is_spent() {
        let cache = Cache::new(100);
        for position in [1, 2, 1, 3] {
            get(&cache, position, 40);
        }
        assert_eq!(kept(&cache), (80, 80));
        assert!(cache.contains(1) && !cache.contains(2) && cache.contains(3));
        // More than the budget alone: it is used, and leaves with the next.
        get(&cache, 4, 200);
        assert_eq!(kept(&cache), (200, 200));
        get(&cache, 5, 40);
        assert_eq!(kept(&cache), (40, 40));
    }

    #[test]
    fn what_is_pinned_stays_until_it_is_removed_and_says_who_brought_it() {
        let cache = Cache::new(100);
        cache.get_or_fetch(1, Origin::Profile, || verified(&[0; 90])).unwrap();
        assert_eq!((cache.pin(1), cache.pin(1), cache.pin(2)), (90, 0, 0));
        get(&cache, 2, 90);
        get(&cache, 3, 90);
        assert!(cache.contains(1) && !cache.contains(2));
        assert_eq!(cache.claim(1), Some(Origin::Profile));
        assert_eq!(cache.claim(1), Some(Origin::Cache));
        assert_eq!((cache.remove(1), cache.remove(3)), (90, 0));
        assert_eq!(kept(&cache), (0, 0));
        get(&cache, 4, 10);
        cache.pin(4);
        assert_eq!((cache.remove_pinned(), cache.remove_pinned()), (10, 0));
    }
}
