//! Verified bytes by key (a position in the index, for whole objects), each fetched by one caller at a time.
//!
//! Whoever asks meanwhile gets the same outcome; a failure is not kept, so that a later read tries again. The least
//! recently used leave when the budget is spent, except what is held: that waits to be asked for.

use std::collections::HashMap;
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

struct Slot {
    cell: Arc<OnceLock<Fetched>>,
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
        let cell = {
            let mut state = self.lock();
            state.clock += 1;
            let used = state.clock;
            let new = || Slot { cell: Arc::default(), used, bytes: 0, origin, held: false };
            let slot = state.slots.entry(key).or_insert_with(new);
            slot.used = used;
            slot.cell.clone()
        };
        cell.get_or_init(|| {
            let fetched = fetch().map(Arc::new);
            // Before the others see the outcome: one that asks again after a failure finds an empty slot.
            self.settle(key, &cell, &fetched);
            fetched
        })
        .clone()
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

    /// Accounts for what was fetched into `cell`.
    fn settle(&self, key: K, cell: &Arc<OnceLock<Fetched>>, fetched: &Fetched) {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(&key).filter(|slot| Arc::ptr_eq(&slot.cell, cell)) else { return };
        match fetched {
            Ok(data) => {
                slot.bytes = data.len();
                state.bytes += data.len();
            }
            Err(_) => {
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
                // Until everybody asks for it: each of them holds the cell, and so does the slot.
                while Arc::strong_count(&cache.lock().slots[&1].cell) < 5 {
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
