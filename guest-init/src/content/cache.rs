//! Verified bytes by key (a position in the index, for whole objects), each fetched by one caller at a time.
//!
//! Whoever asks meanwhile gets the same outcome; a failure is not kept, so that a later read tries again. The least
//! recently used leave when the budget is spent, except what is held: that waits to be asked for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use lazyroot_proto::reads::Origin;

use crate::objects::ReadError;

/// What a fetch brought: verified bytes, or why there are none.
pub type Fetched = Result<Arc<Vec<u8>>, ReadError>;

/// See the module.
pub struct Cache<K = u32> {
    budget: usize,
    /// Never held while a fetch is waited for.
    state: Mutex<State<K>>,
}

struct State<K> {
    slots: HashMap<K, Slot>,
    /// Of the slots that are not held.
    bytes: usize,
    clock: u64,
}

/// What a fetch will have brought; `None` if it was given up.
type Outcome = OnceLock<Option<Fetched>>;

struct Slot {
    outcome: Arc<Outcome>,
    used: u64,
    /// 0 until the bytes are here.
    bytes: usize,
    /// Who had it fetched; [`Origin::Cache`] once a program has asked for it.
    origin: Origin,
    held: bool,
}

impl<K: Copy + Eq + Hash> State<K> {
    /// Returns the bytes that were held.
    fn remove(&mut self, key: K) -> usize {
        match self.slots.remove(&key) {
            Some(slot) if slot.held => slot.bytes,
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
    pub fn get_or_fetch(&self, key: K, origin: Origin, fetch: impl FnOnce() -> Result<Vec<u8>, ReadError>) -> Fetched {
        loop {
            match self.look_up(key, origin) {
                Ok(mine) => return mine.finish(fetch()),
                Err(theirs) => {
                    if let Some(fetched) = theirs.wait() {
                        return fetched.clone();
                    }
                }
            }
        }
    }

    /// Has the caller fetch the bytes at `key` on behalf of `origin`; `None` if they are here or on their way. Whoever has
    /// begun several must not wait for what others fetch before it has finished its own.
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
                slot.insert(Slot { outcome: outcome.clone(), used, bytes: 0, origin, held: false });
                Ok(Fetch { cache: self, key, outcome })
            }
        }
    }

    /// Who had fetched, or is fetching, what is here, if it is; a program asks for it now.
    pub fn claim(&self, key: K) -> Option<Origin> {
        let mut state = self.lock();
        let slot = state.slots.get_mut(&key)?;
        Some(std::mem::replace(&mut slot.origin, Origin::Cache))
    }

    /// Whether it is here or on its way.
    pub fn has(&self, key: K) -> bool {
        self.lock().slots.contains_key(&key)
    }

    /// From here on it stays until it is dropped; returns its size in bytes, 0 if it is not here (any more).
    pub fn hold(&self, key: K) -> usize {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(&key).filter(|slot| !slot.held) else { return 0 };
        slot.held = true;
        let bytes = slot.bytes;
        state.bytes -= bytes;
        bytes
    }

    /// Lets go of what is kept for a key; returns the bytes that were held.
    pub fn drop(&self, key: K) -> usize {
        self.lock().remove(key)
    }

    /// Lets go of all that is held; returns its size in bytes.
    pub fn drop_held(&self) -> usize {
        let mut state = self.lock();
        let held = state.slots.values().filter(|slot| slot.held).map(|slot| slot.bytes).sum();
        state.slots.retain(|_, slot| !slot.held);
        held
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
        // Rarely more than a few slots to look through: entries leave as fast as they come.
        while state.bytes > self.budget {
            let loose = |(other, slot): &(&K, &Slot)| **other != key && slot.bytes > 0 && !slot.held;
            let oldest = state.slots.iter().filter(loose).min_by_key(|(_, slot)| slot.used);
            let Some(oldest) = oldest.map(|(oldest, _)| *oldest) else { break };
            state.remove(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().expect("no panic under the lock")
    }
}

/// A fetch that is under way. Who drops it unfinished leaves it to whoever waits for it.
pub struct Fetch<'a, K: Copy + Eq + Hash> {
    cache: &'a Cache<K>,
    key: K,
    outcome: Arc<Outcome>,
}

impl<K: Copy + Eq + Hash> Fetch<'_, K> {
    /// Tells everybody who waits what has come.
    pub fn finish(self, fetched: Result<Vec<u8>, ReadError>) -> Fetched {
        let fetched = fetched.map(Arc::new);
        self.settle(Some(fetched.clone()));
        fetched
    }

    fn settle(&self, fetched: Option<Fetched>) {
        let bytes = fetched.as_ref().and_then(|fetched| fetched.as_ref().ok()).map(|data| data.len());
        // Before the others see the outcome: one that asks again after a failure finds an empty slot.
        self.cache.settle(self.key, &self.outcome, bytes);
        let _ = self.outcome.set(fetched);
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
    use lazyroot_proto::{Algorithm, verity};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    fn corrupt() -> Result<Vec<u8>, ReadError> {
        Err(ReadError::Corrupt(verity::digest(Algorithm::Sha256, b"x")))
    }

    /// Bytes that the cache believes to keep, and those in its slots.
    fn kept(cache: &Cache) -> (usize, usize) {
        let state = cache.lock();
        (state.bytes, state.slots.values().filter(|slot| !slot.held).map(|slot| slot.bytes).sum())
    }

    fn get(cache: &Cache, position: u32, len: usize) -> Arc<Vec<u8>> {
        cache.get_or_fetch(position, Origin::Host, || Ok(vec![0; len])).unwrap()
    }

    #[test]
    fn callers_at_the_same_time_share_one_fetch_and_its_outcome() {
        for outcome in [Ok(vec![7]), corrupt()] {
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
            assert!(cache.begin(1, Origin::Host).is_none() && cache.has(1));
            thread::scope(|scope| {
                let reader = scope.spawn(|| cache.get_or_fetch(1, Origin::Host, || Ok(vec![2])));
                while Arc::strong_count(&cache.lock().slots[&1].outcome) < 3 {
                    thread::sleep(Duration::from_millis(1));
                }
                if given_up {
                    drop(begun);
                } else {
                    begun.finish(Ok(vec![1])).unwrap();
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
        assert_eq!(*get(&cache, 1, 10), vec![0; 10]);
        assert_eq!(*cache.get_or_fetch(1, Origin::Host, || unreachable!()).unwrap(), vec![0; 10]);
        assert_eq!(kept(&cache), (10, 10));
    }

    #[test]
    fn the_least_recently_used_leave_when_the_budget_is_spent() {
        let cache = Cache::new(100);
        for position in [1, 2, 1, 3] {
            get(&cache, position, 40);
        }
        assert_eq!(kept(&cache), (80, 80));
        assert!(cache.has(1) && !cache.has(2) && cache.has(3));
        // More than the budget alone: it is used, and leaves with the next.
        get(&cache, 4, 200);
        assert_eq!(kept(&cache), (200, 200));
        get(&cache, 5, 40);
        assert_eq!(kept(&cache), (40, 40));
    }

    #[test]
    fn what_is_held_stays_until_it_is_dropped_and_says_who_brought_it() {
        let cache = Cache::new(100);
        cache.get_or_fetch(1, Origin::Profile, || Ok(vec![0; 90])).unwrap();
        assert_eq!((cache.hold(1), cache.hold(1), cache.hold(2)), (90, 0, 0));
        get(&cache, 2, 90);
        get(&cache, 3, 90);
        assert!(cache.has(1) && !cache.has(2));
        assert_eq!(cache.claim(1), Some(Origin::Profile));
        assert_eq!(cache.claim(1), Some(Origin::Cache));
        assert_eq!((cache.drop(1), cache.drop(3)), (90, 0));
        assert_eq!(kept(&cache), (0, 0));
        get(&cache, 4, 10);
        cache.hold(4);
        assert_eq!((cache.drop_held(), cache.drop_held()), (10, 0));
    }
}
