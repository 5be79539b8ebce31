//! The cache's files, shared by every process of the user.
//!
//! ```text
//! ab/cdef...        an object of up to 256 KiB, whole
//! ab/cdef....l      the Merkle leaves of a larger one
//! ab/cdef....N      its piece number N, of 64 KiB
//! tmp/              entries being written
//! locks/NNN         held by the process that fetches an entry
//! tally             how often it had what was wanted (hit_counts.rs)
//! usage             as many bytes long as the cache has MiB
//! evict             held by the process that makes room
//! ```
//!
//! Entries are written elsewhere and renamed, so a process that is killed leaves none half-written; they are not synced,
//! so a machine that loses power may. Therefore each process checks an entry when it first meets it, and again after
//! the file has changed hands: nothing that is damaged is ever served. Nothing here needs more of the system than
//! `rename`, `flock`, `O_APPEND` and file times, which are the same on Linux and macOS.
//!
//! An entry's modification time says when it was last used, to within [`TOUCH`]. Who wrote the bytes that carry the
//! cache over its limit removes what was used longest ago.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use lazyroot_proto::verified::Mismatch;
use lazyroot_proto::{Unverified, Verified};
use rustix::fs::FlockOperation;

use super::key::{Key, Part};
use crate::durable::rename_unsynced;
use crate::store::objects::nowait;

/// An entry's time of use is written down this often at most: a write to its inode costs more than a read of it.
const TOUCH: Duration = Duration::from_secs(10);

/// Locks that processes hold while they fetch. Two entries that share one wait for each other for no reason: with a
/// few dozen fetches under way that is rare.
const LOCKS: u64 = 1024;

/// How long to wait for another process that fetches the same; it may have been stopped.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between looks at a lock that is held: a fetch takes about as long.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Making room leaves this share of the limit free, and [`SLACK`] at least: it need not be done again at once.
const FREE: u64 = 16;

/// What is always left free by making room: what the usage does not say yet, and as much again.
const SLACK: u64 = 2 * UNIT;

/// The file whose length is the usage.
const USAGE: &str = "usage";

/// Usage is counted in this unit, in bytes.
const UNIT: u64 = 1 << 20;

/// What a file takes on disk is a multiple of this on the file systems in use, in bytes.
const BLOCK: u64 = 4096;

/// After this time the usage is measured anew: processes that were killed did not count their last bytes.
const REMEASURE: Duration = Duration::from_secs(3600);

/// Temporary files older than this belong to nobody any more.
const STALE: Duration = Duration::from_secs(600);

/// An opened cache folder.
pub(super) struct Disk {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    /// In bytes.
    limit: u64,
    /// Entries that this process has checked, by hash, and when it last said that they are in use.
    known: Mutex<HashMap<u64, Instant>>,
    hasher: RandomState,
    /// Bytes written that the usage does not say yet.
    uncounted: Mutex<u64>,
    temporary: AtomicU64,
    evicting: AtomicBool,
    complained: AtomicBool,
}

/// Locks held against other processes.
pub(super) struct FetchLocks {
    _files: Vec<File>,
}

impl Disk {
    /// The cache in `dir`, which is made if it is not there, of at most `limit` bytes.
    pub(super) fn open(dir: &Path, limit: u64) -> Result<Self> {
        crate::home::private_dir(dir)?;
        for name in ["tmp", "locks"] {
            crate::home::private_dir(&dir.join(name))?;
        }
        let shared = Shared {
            dir: dir.to_owned(),
            limit,
            known: Mutex::default(),
            hasher: RandomState::new(),
            uncounted: Mutex::new(0),
            temporary: AtomicU64::new(0),
            evicting: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        };
        let disk = Self { shared: Arc::new(shared) };
        let measured = fs::metadata(dir.join(USAGE)).and_then(|meta| meta.modified()).ok();
        let is_recent = |time: SystemTime| time.elapsed().is_ok_and(|age| age < REMEASURE);
        let usage = disk.shared.usage().with_context(|| format!("cannot use the cache {}", dir.display()))?;
        if disk.shared.is_full(usage) || !measured.is_some_and(is_recent) {
            disk.make_room();
        }
        Ok(disk)
    }

    /// Fills `buf` from byte `offset` of an entry that this process has checked before. It is not checked again: these are
    /// bytes from a disk, as those of the repository are. `false` if it was not checked, or the entry is gone.
    pub(super) fn read(&self, key: Key, offset: u64, buf: &mut [u8]) -> bool {
        let shared = &self.shared;
        let Some(touched) = shared.known().get(&shared.hash(key)).copied() else { return false };
        let Ok(file) = File::open(shared.path(key)) else { return false };
        let read = file.read_exact_at(buf, offset).is_ok();
        if read && touched.elapsed() >= TOUCH {
            shared.touch(&file, key);
        }
        read
    }

    /// As [`Disk::read`], if that needs no waiting.
    pub(super) fn read_cached(&self, key: Key, offset: u64, buf: &mut [u8]) -> bool {
        let shared = &self.shared;
        let touched = shared.known().get(&shared.hash(key)).copied();
        // Saying that it is in use may wait for a disk.
        touched.is_some_and(|touched| touched.elapsed() < TOUCH)
            && nowait::open(rustix::fs::CWD, shared.path(key))
                .is_some_and(|file| nowait::read_exact_at(&file, buf, offset))
    }

    /// A whole entry, if it is verified; one that is not is removed.
    pub(super) fn load(
        &self,
        key: Key,
        verify: impl FnOnce(Unverified) -> Result<Verified, Mismatch>,
    ) -> Option<Verified> {
        let shared = &self.shared;
        let path = shared.path(key);
        let Ok(data) = verify(fs::read(&path).ok()?.into()) else {
            tracing::warn!("the cache's entry {} is damaged: it is fetched again", path.display());
            shared.known().remove(&shared.hash(key));
            let _ = fs::remove_file(&path);
            return None;
        };
        if let Ok(file) = File::open(&path) {
            shared.touch(&file, key);
        }
        Some(data)
    }

    /// Keeps an entry. That it cannot be written is no error: it is fetched again another time.
    pub(super) fn store(&self, key: Key, data: &Verified) {
        let shared = &self.shared;
        // One entry must not push out all others.
        if (data.len() as u64).saturating_mul(4) > shared.limit {
            return;
        }
        if let Err(error) = shared.write(key, data) {
            if !shared.complained.swap(true, Ordering::Relaxed) {
                tracing::warn!("cannot write to the cache {}: {error}", shared.dir.display());
            }
            // Whatever filled the disk, this much of it is ours to give.
            if error.kind() == io::ErrorKind::StorageFull {
                self.make_room();
            }
            return;
        }
        shared.known().insert(shared.hash(key), Instant::now());
        match shared.count(on_disk(data.len() as u64)) {
            Ok(usage) if shared.is_full(usage) => self.make_room(),
            Ok(_) => (),
            Err(error) => tracing::debug!("the cache's usage is not counted: {error}"),
        }
    }

    /// Keeps other processes from fetching these entries, unless they take too long over it themselves.
    pub(super) fn lock(&self, keys: impl IntoIterator<Item = Key>) -> FetchLocks {
        let mut numbers: Vec<u64> = keys.into_iter().map(|key| key.lock_number(LOCKS)).collect();
        // In order, so that two processes never wait for each other.
        numbers.sort_unstable();
        numbers.dedup();
        let deadline = Instant::now() + LOCK_PATIENCE;
        let lock = |number: u64| {
            let path = self.shared.dir.join("locks").join(format!("{number:03x}"));
            let file = private_file().create(true).truncate(false).write(true).open(path).ok()?;
            while let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                if error != rustix::io::Errno::WOULDBLOCK || Instant::now() >= deadline {
                    return None;
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            Some(file)
        };
        FetchLocks { _files: numbers.into_iter().filter_map(lock).collect() }
    }

    /// Removes what was used longest ago, from a thread of its own, unless some process does already.
    fn make_room(&self) {
        if self.shared.evicting.swap(true, Ordering::AcqRel) {
            return;
        }
        let shared = self.shared.clone();
        let evict = move || {
            if let Err(error) = shared.evict() {
                tracing::warn!("cannot make room in the cache {}: {error}", shared.dir.display());
            }
            shared.evicting.store(false, Ordering::Release);
        };
        if std::thread::Builder::new().name("cache".into()).spawn(evict).is_err() {
            self.shared.evicting.store(false, Ordering::Release);
        }
    }
}

/// The bytes in the cache in `dir`, 0 if there is none.
pub(super) fn usage(dir: &Path) -> u64 {
    fs::metadata(dir.join(USAGE)).map_or(0, |meta| meta.len().saturating_mul(UNIT))
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// What a file of `len` bytes takes.
fn on_disk(len: u64) -> u64 {
    len.next_multiple_of(BLOCK)
}

impl Shared {
    fn path(&self, key: Key) -> PathBuf {
        let path = key.id.object_path();
        self.dir.join(match key.part {
            Part::Whole => path,
            Part::Leaves => format!("{path}.l"),
            Part::Piece(number) => format!("{path}.{number}"),
        })
    }

    fn hash(&self, key: Key) -> u64 {
        self.hasher.hash_one(key)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that an entry is in use.
    fn touch(&self, file: &File, key: Key) {
        let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        self.known().insert(self.hash(key), Instant::now());
    }

    fn write(&self, key: Key, data: &[u8]) -> io::Result<()> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join("tmp").join(format!("{}-{number}", std::process::id()));
        let written = (|| {
            let mut file = private_file().create(true).truncate(true).write(true).open(&temporary)?;
            file.write_all(data)?;
            let path = self.path(key);
            match rename_unsynced(&temporary, &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(path.parent().expect("an entry is in a folder"))?;
                    rename_unsynced(&temporary, &path)
                }
                renamed => renamed,
            }
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Whether there is no room for what the usage does not say yet.
    fn is_full(&self, usage: u64) -> bool {
        usage + UNIT > self.limit
    }

    /// The bytes in the cache, to within a unit for each process that uses it.
    fn usage(&self) -> io::Result<u64> {
        Ok(self.usage_file()?.metadata()?.len() * UNIT)
    }

    fn usage_file(&self) -> io::Result<File> {
        private_file().create(true).append(true).open(self.dir.join(USAGE))
    }

    /// Adds to the usage; what it is now.
    fn count(&self, bytes: u64) -> io::Result<u64> {
        let units = {
            let mut uncounted = self.uncounted.lock().unwrap_or_else(PoisonError::into_inner);
            *uncounted += bytes;
            let units = *uncounted / UNIT;
            *uncounted %= UNIT;
            units
        };
        let mut file = self.usage_file()?;
        if units > 0 {
            // One append is one step for every process.
            file.write_all(&vec![0; units as usize])?;
        }
        Ok(file.metadata()?.len() * UNIT)
    }

    fn evict(&self) -> io::Result<()> {
        let lock = private_file().create(true).truncate(false).write(true).open(self.dir.join("evict"))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let usage = self.usage_file()?;
        let before = usage.metadata()?.len();
        self.sweep();
        let mut entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if self.is_full(total) {
            let leave = self.limit - (self.limit / FREE).max(SLACK).min(self.limit);
            entries.sort_unstable_by_key(|entry| entry.used);
            for entry in entries {
                if total <= leave {
                    break;
                }
                // A process that reads it has it open; one that looks for it later fetches it again.
                match fs::remove_file(&entry.path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => total -= entry.bytes,
                }
            }
        }
        // What was written meanwhile has been added to the old count.
        let meanwhile = usage.metadata()?.len().saturating_sub(before);
        usage.set_len(total / UNIT + meanwhile)?;
        // The length may have stayed the same: the time of the measurement is news anyway.
        usage.set_times(FileTimes::new().set_modified(SystemTime::now()))
    }

    /// Removes what killed processes left.
    fn sweep(&self) {
        for entry in fs::read_dir(self.dir.join("tmp")).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
            if matches!(age, Ok(Ok(age)) if age > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for folder in fs::read_dir(&self.dir)? {
            let folder = folder?;
            // Folders of entries have the two digits of an id's first byte.
            if folder.file_name().len() != 2 {
                continue;
            }
            for entry in fs::read_dir(folder.path())? {
                let entry = entry?;
                // Gone meanwhile is fine.
                if let Ok(meta) = entry.metadata() {
                    let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    entries.push(Entry { used, bytes: on_disk(meta.len()), path: entry.path() });
                }
            }
        }
        Ok(entries)
    }
}

struct Entry {
    used: SystemTime,
    /// On disk.
    bytes: u64,
    path: PathBuf,
}

#[cfg(test)]
mod tests {
    use lazyroot_proto::{Algorithm, verity};

    use super::*;

    fn key(number: u32) -> Key {
        Key { id: verity::digest(Algorithm::Sha256, &number.to_le_bytes()), part: Part::Whole }
    }

    fn verified(data: &[u8]) -> Verified {
        Unverified::from(data.to_vec()).verify_object(&verity::digest(Algorithm::Sha256, data)).unwrap()
    }

    fn disk(limit: u64) -> (tempfile::TempDir, Disk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("cache"), limit).unwrap();
        (dir, disk)
    }

    fn total(disk: &Disk) -> u64 {
        disk.shared.entries().unwrap().iter().map(|entry| entry.bytes).sum()
    }

    /// Waits until room was made.
    fn settle(disk: &Disk) {
        while disk.shared.evicting.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_the_limit_holds() {
        let (_dir, disk) = disk(16 << 20);
        settle(&disk);
        let ago = |seconds| FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(seconds));
        for number in 0..200 {
            disk.store(key(number), &verified(&[number as u8; 100_000]));
            let file = OpenOptions::new().write(true).open(disk.shared.path(key(number)));
            // Entry 3 is in use all the time.
            if let Ok(file) = file {
                file.set_times(ago(if number == 3 { 0 } else { 10_000 - u64::from(number) })).unwrap();
            }
            settle(&disk);
            assert!(total(&disk) <= (16 << 20) + UNIT, "after {number}: {}", total(&disk));
        }
        let has = |number| disk.read(key(number), 0, &mut [0; 100_000]);
        assert!(has(3) && has(199) && has(190));
        assert!(!has(0) && !has(10));
    }

    #[test]
    fn the_usage_is_what_many_threads_wrote_together() {
        let (_dir, disk) = disk(1 << 30);
        settle(&disk);
        let content = verified(&[7; 40_000]);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (disk, content) = (&disk, &content);
                scope.spawn(move || (0..200).for_each(|number| disk.store(key(thread * 1000 + number), content)));
            }
        });
        let (written, usage) = (total(&disk), disk.shared.usage().unwrap());
        assert!(usage <= written && written < usage + UNIT, "{usage} of {written}");
    }

    #[test]
    fn a_damaged_entry_is_removed_and_never_read_by_a_process_that_did_not_write_it() {
        let (dir, disk) = disk(16 << 20);
        disk.store(key(1), &verified(b"content"));
        let other = Disk::open(&dir.path().join("cache"), 16 << 20).unwrap();
        let is_content = |data: Unverified| data.verify_object(&verity::digest(Algorithm::Sha256, b"content"));
        assert!(!other.read(key(1), 0, &mut [0; 7]), "not checked yet");
        fs::write(disk.shared.path(key(1)), b"c0ntent").unwrap();
        assert_eq!(other.load(key(1), is_content), None);
        assert!(!disk.shared.path(key(1)).exists());
        disk.store(key(1), &verified(b"content"));
        assert_eq!(other.load(key(1), is_content).as_deref(), Some(&b"content"[..]));
        let mut part = [0; 3];
        assert!(other.read(key(1), 4, &mut part) && &part == b"ent");
        assert!(!other.read(key(1), 5, &mut part), "beyond the end");
    }

    #[test]
    fn a_lock_is_held_against_other_openings_of_the_folder() {
        let (dir, disk) = disk(1 << 20);
        let other = Disk::open(&dir.path().join("cache"), 1 << 20).unwrap();
        let held = disk.lock([key(1), key(2), key(1)]);
        let (sender, taken) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let _locked = other.lock([key(2)]);
            sender.send(()).unwrap();
        });
        assert!(taken.recv_timeout(Duration::from_millis(50)).is_err(), "it waits");
        drop(held);
        taken.recv().unwrap();
        waiter.join().unwrap();
    }
}
