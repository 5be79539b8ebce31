//! How often what was read was in the cache already, over all processes: four numbers in a file. A process that is killed
//! loses what it has not added yet.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use serde::Serialize;

/// The file, in the cache's folder.
const NAME: &str = "tally";

/// After so many reads they are added to the file: some microseconds for as many milliseconds of work.
const OFTEN: u64 = 1024;

/// Reads of what is not in the local store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheUse {
    /// Reads that the cache had all of.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Objects, and pieces of large ones, that had to be fetched.
    pub misses: u64,
    /// Their bytes.
    pub miss_bytes: u64,
}

impl CacheUse {
    /// What is known of the cache in `dir`.
    pub(super) fn read(dir: &Path) -> Self {
        let mut bytes = [0; 32];
        // Shorter, or not there: nothing was counted.
        let _ = File::open(dir.join(NAME)).and_then(|file| file.read_exact_at(&mut bytes, 0));
        Self::from_bytes(&bytes)
    }

    /// Of the bytes that were wanted, the share that the cache had; `None` if none were.
    pub fn hit_ratio(&self) -> Option<f64> {
        let all = self.hit_bytes.saturating_add(self.miss_bytes);
        (all > 0).then(|| self.hit_bytes as f64 / all as f64)
    }

    fn from_bytes(bytes: &[u8; 32]) -> Self {
        let number = |at: usize| u64::from_le_bytes(bytes[at * 8..][..8].try_into().expect("8 bytes"));
        Self { hits: number(0), hit_bytes: number(1), misses: number(2), miss_bytes: number(3) }
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.hits, self.hit_bytes, self.misses, self.miss_bytes]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    }
}

/// What this process has to add.
pub(super) struct HitCounter {
    path: PathBuf,
    hits: AtomicU64,
    hit_bytes: AtomicU64,
    misses: AtomicU64,
    miss_bytes: AtomicU64,
}

impl HitCounter {
    /// For the cache in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        let [hits, hit_bytes, misses, miss_bytes] = Default::default();
        Self { path: dir.join(NAME), hits, hit_bytes, misses, miss_bytes }
    }

    /// A read found all in the cache.
    pub(super) fn hit(&self, bytes: usize) {
        self.hit_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.hits.fetch_add(1, Ordering::Relaxed) % OFTEN == OFTEN - 1 {
            self.add();
        }
    }

    /// Something had to be fetched.
    pub(super) fn miss(&self, bytes: usize) {
        self.miss_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.misses.fetch_add(1, Ordering::Relaxed) % OFTEN == OFTEN - 1 {
            self.add();
        }
    }

    /// Adds to the file; what cannot be added now stays for the next time.
    fn add(&self) {
        let Ok(file) =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.path)
        else {
            return;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let mut bytes = [0; 32];
        let _ = file.read_exact_at(&mut bytes, 0);
        let known = CacheUse::from_bytes(&bytes);
        let take = |number: &AtomicU64, known: u64| known.saturating_add(number.swap(0, Ordering::Relaxed));
        let sum = CacheUse {
            hits: take(&self.hits, known.hits),
            hit_bytes: take(&self.hit_bytes, known.hit_bytes),
            misses: take(&self.misses, known.misses),
            miss_bytes: take(&self.miss_bytes, known.miss_bytes),
        };
        let _ = file.write_all_at(&sum.to_bytes(), 0);
    }
}

impl Drop for HitCounter {
    fn drop(&mut self) {
        if self.hits.load(Ordering::Relaxed) + self.misses.load(Ordering::Relaxed) > 0 {
            self.add();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_add_up() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(CacheUse::read(dir.path()).hit_ratio(), None);
        let (one, two) = (HitCounter::new(dir.path()), HitCounter::new(dir.path()));
        for _ in 0..OFTEN {
            one.hit(3);
        }
        two.miss(1000);
        two.hit(24);
        drop(two);
        one.hit(4);
        drop(one);
        let all = CacheUse::read(dir.path());
        assert_eq!(all, CacheUse { hits: OFTEN + 2, hit_bytes: 3 * OFTEN + 28, misses: 1, miss_bytes: 1000 });
        assert!((all.hit_ratio().unwrap() - 0.757).abs() < 0.01);
    }
}
