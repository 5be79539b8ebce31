//! Verified reads of an image's objects: what the FUSE layer asks, answered from the link.
//!
//! Nothing leaves this module that has not been checked against a digest from the verified object index.
//! Small objects are fetched whole, which one hash over their blocks proves. Of large ones the Merkle leaves
//! come first (32 or 64 bytes for every 4 KiB, checked against the digest), and then just the ranges asked for.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use lazyroot_proto::frame::{EventKind, MAX_READ};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{ObjectId, verity};

use crate::clock::monotonic_now;
use crate::link::{Link, LinkError};
use crate::neighbours::{Ahead, Neighbours};

/// Objects up to this many bytes travel whole: 99 % of the objects of a Linux image, and at vsock's speed
/// (tens of MiB/s emulated, GB/s otherwise) no dearer than the extra round trip for leaves.
const WHOLE_MAX: u64 = 256 << 10;

/// Memory for objects fetched whole, in bytes. The kernel's page cache keeps what programs read; this only
/// bridges the several READs that readahead makes of one file.
const WHOLE_BUDGET: usize = 8 << 20;

/// Memory for Merkle leaves, in bytes: enough for 1 GiB (SHA-256) of large files being read at a time.
const LEAVES_BUDGET: usize = 8 << 20;

/// Why a read failed. The text names the object.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The host could not deliver it.
    #[error("object {id}: {error}")]
    Link {
        /// Which object.
        id: ObjectId,
        /// What went wrong.
        error: LinkError,
    },
    /// What arrived is not what the digest names.
    #[error("object {0}: the content does not match its digest")]
    Corrupt(ObjectId),
}

/// The objects of one image.
pub struct Objects {
    link: Arc<Link>,
    index: ObjectIndex,
    whole: Cache,
    neighbours: Neighbours,
    leaves: Cache,
    /// Objects whose failure was told.
    told: Mutex<HashSet<u32>>,
}

/// Bytes that a read returns: a part of a shared buffer, so that nothing is copied on the way to the kernel.
pub struct Bytes {
    data: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }
}

impl Objects {
    /// The objects in `index` (already verified), read through `link`.
    pub fn new(link: Arc<Link>, index: ObjectIndex) -> Self {
        let (whole, leaves) = (Cache::new(WHOLE_BUDGET), Cache::new(LEAVES_BUDGET));
        Self { link, index, whole, neighbours: Neighbours::default(), leaves, told: Mutex::default() }
    }

    /// The image's object index.
    pub fn index(&self) -> &ObjectIndex {
        &self.index
    }

    /// The session with the host.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Takes down that the kernel asked for an object, and asks for what follows it if it seems to be read next.
    pub fn miss(&self, position: u32) -> Ahead {
        match self.index.get(position) {
            Some((_, 1..=WHOLE_MAX)) => self.neighbours.miss(&self.link, &self.index, position, WHOLE_MAX),
            _ => Ahead::default(),
        }
    }

    /// Up to `len` bytes at byte `offset` of the object at `position` in the index; fewer only at its end.
    /// `None` if there is no such object.
    pub fn read(&self, position: u32, offset: u64, len: u32) -> Option<Result<Bytes, ReadError>> {
        let (id, size) = self.index.get(position)?;
        let start = offset.min(size);
        let end = size.min(start + u64::from(len));
        let read = if size <= WHOLE_MAX {
            self.whole(position, id, size).map(|data| Bytes { data, start: start as usize, end: end as usize })
        } else {
            self.range(position, id, size, start, end)
        };
        if let Err(error) = &read {
            self.tell(position, error);
        }
        Some(read)
    }

    /// All of an object that is small enough to travel whole; `None` of a larger one.
    pub fn read_small(&self, position: u32) -> Option<Fetched> {
        let (id, size) = self.index.get(position).filter(|(_, size)| *size <= WHOLE_MAX)?;
        Some(self.whole(position, id, size))
    }

    /// The kernel has all of this object now.
    pub fn drop_small(&self, position: u32) {
        self.whole.drop(position);
    }

    /// Says once that an object cannot be read, here (the console) and on the host. The kernel asks for every page
    /// of a failed read again.
    fn tell(&self, position: u32, error: &ReadError) {
        if self.told.lock().expect("no panic under the lock").insert(position) {
            // Nobody may be listening: standard error of a mount in the background is gone.
            let _ = writeln!(std::io::stderr(), "lazyroot: {error}");
            self.link.event(EventKind::Warning, monotonic_now(), &error.to_string());
        }
    }

    fn whole(&self, position: u32, id: ObjectId, size: u64) -> Result<Arc<Vec<u8>>, ReadError> {
        self.whole.get_or_fetch(position, || {
            let data = match size {
                0 => Vec::new(),
                _ => {
                    let read = self.neighbours.read(&self.link, id, position, size as u32);
                    read.map_err(|error| ReadError::Link { id, error })?
                }
            };
            match verity::digest(id.algorithm(), &data) == id {
                true => Ok(data),
                false => Err(ReadError::Corrupt(id)),
            }
        })
    }

    fn range(&self, position: u32, id: ObjectId, size: u64, start: u64, end: u64) -> Result<Bytes, ReadError> {
        let link_error = |error| ReadError::Link { id, error };
        let leaves = self.leaves.get_or_fetch(position, || {
            let len = verity::leaves_len(id.algorithm(), size);
            let leaves = self.link.leaves(id, len).map_err(link_error)?;
            match verity::digest_of_leaves(id.algorithm(), &leaves, size) == Some(id) {
                true => Ok(leaves),
                false => Err(ReadError::Corrupt(id)),
            }
        })?;
        // Whole blocks around the range: only they can be checked. The kernel asks for whole pages anyway.
        let block = verity::BLOCK as u64;
        let first = start / block * block;
        let last = end.next_multiple_of(block).min(size);
        let mut data = Vec::with_capacity((last - first) as usize);
        while first + (data.len() as u64) < last {
            let offset = first + data.len() as u64;
            let len = (last - offset).min(MAX_READ.into()) as u32;
            let piece = self.link.read(id, offset, len).map_err(link_error)?;
            if data.is_empty() { data = piece } else { data.extend_from_slice(&piece) }
        }
        if !verity::range_matches(id.algorithm(), &leaves, first, &data) {
            return Err(ReadError::Corrupt(id));
        }
        Ok(Bytes { data: Arc::new(data), start: (start - first) as usize, end: (end - first) as usize })
    }
}

/// What a fetch brought: verified bytes, or why there are none.
pub type Fetched = Result<Arc<Vec<u8>>, ReadError>;

/// Verified bytes by position, the least recently used dropped first, each fetched by one caller at a time.
/// Whoever asks meanwhile gets the same outcome; a failure is not kept, so that a later read tries again.
struct Cache {
    budget: usize,
    /// Never held while a fetch is waited for.
    state: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    slots: HashMap<u32, Slot>,
    bytes: usize,
    clock: u64,
}

#[derive(Default)]
struct Slot {
    cell: Arc<OnceLock<Fetched>>,
    used: u64,
    /// 0 until the bytes are here.
    bytes: usize,
}

impl CacheState {
    fn remove(&mut self, position: u32) {
        self.bytes -= self.slots.remove(&position).map_or(0, |slot| slot.bytes);
    }
}

impl Cache {
    fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::default() }
    }

    fn get_or_fetch(&self, position: u32, fetch: impl FnOnce() -> Result<Vec<u8>, ReadError>) -> Fetched {
        let cell = {
            let mut state = self.state.lock().expect("no panic under the lock");
            state.clock += 1;
            let clock = state.clock;
            let slot = state.slots.entry(position).or_default();
            slot.used = clock;
            slot.cell.clone()
        };
        cell.get_or_init(|| {
            let fetched = fetch().map(Arc::new);
            // Before the others see the outcome: one that asks again after a failure finds an empty slot.
            self.settle(position, &cell, &fetched);
            fetched
        })
        .clone()
    }

    /// Lets go of what is kept for a position.
    fn drop(&self, position: u32) {
        self.state.lock().expect("no panic under the lock").remove(position);
    }

    /// Accounts for what was fetched into `cell`.
    fn settle(&self, position: u32, cell: &Arc<OnceLock<Fetched>>, fetched: &Fetched) {
        let mut state = self.state.lock().expect("no panic under the lock");
        let Some(slot) = state.slots.get_mut(&position).filter(|slot| Arc::ptr_eq(&slot.cell, cell)) else { return };
        match fetched {
            Ok(data) => {
                slot.bytes = data.len();
                state.bytes += data.len();
            }
            Err(_) => state.remove(position),
        }
        // Rarely more than a few slots to look through: entries leave as fast as they come.
        while state.bytes > self.budget {
            let oldest = state.slots.iter().filter(|(other, slot)| **other != position && slot.bytes > 0);
            let Some(oldest) = oldest.min_by_key(|(_, slot)| slot.used).map(|(oldest, _)| *oldest) else { break };
            state.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::Algorithm;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    fn corrupt() -> Result<Vec<u8>, ReadError> {
        Err(ReadError::Corrupt(verity::digest(Algorithm::Sha256, b"x")))
    }

    /// Bytes that the cache believes to hold, and those in its slots.
    fn held(cache: &Cache) -> (usize, usize) {
        let state = cache.state.lock().unwrap();
        (state.bytes, state.slots.values().map(|slot| slot.bytes).sum())
    }

    #[test]
    fn callers_at_the_same_time_share_one_fetch_and_its_outcome() {
        for outcome in [Ok(vec![7]), corrupt()] {
            let cache = Cache::new(100);
            let fetches = AtomicUsize::new(0);
            let fetch = || {
                fetches.fetch_add(1, Ordering::Relaxed);
                // Until everybody asks for it: each of them holds the cell, and so does the slot.
                while Arc::strong_count(&cache.state.lock().unwrap().slots[&1].cell) < 5 {
                    thread::sleep(Duration::from_millis(1));
                }
                outcome.clone()
            };
            thread::scope(|scope| {
                let readers: Vec<_> = (0..4).map(|_| scope.spawn(|| cache.get_or_fetch(1, fetch))).collect();
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
        assert!(cache.get_or_fetch(1, corrupt).is_err());
        assert_eq!(held(&cache), (0, 0));
        assert_eq!(*cache.get_or_fetch(1, || Ok(vec![7; 10])).unwrap(), vec![7; 10]);
        assert_eq!(*cache.get_or_fetch(1, || unreachable!()).unwrap(), vec![7; 10]);
        assert_eq!(held(&cache), (10, 10));
    }

    #[test]
    fn the_least_recently_used_leave_when_the_budget_is_spent() {
        let cache = Cache::new(100);
        let get = |position| cache.get_or_fetch(position, || Ok(vec![0; 40])).unwrap();
        get(1);
        get(2);
        get(1);
        get(3);
        assert_eq!(held(&cache), (80, 80));
        let mut kept: Vec<_> = cache.state.lock().unwrap().slots.keys().copied().collect();
        kept.sort_unstable();
        assert_eq!(kept, [1, 3]);
        // More than the budget alone: it is used, and leaves with the next.
        cache.get_or_fetch(4, || Ok(vec![0; 200])).unwrap();
        assert_eq!(held(&cache), (200, 200));
        get(5);
        assert_eq!(held(&cache), (40, 40));
    }
}
