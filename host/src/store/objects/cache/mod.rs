//! Upstreams behind a cache that every VM and every process of the user shares.
//!
//! Small objects are fetched and kept whole. Of larger ones, pieces of 64 KiB are, the ones that are read, next to the
//! Merkle leaves that prove them. What is kept and given out is [`Verified`]: upstreams return nothing else, and what a
//! file of the cache holds is [`Unverified`] until this process has checked it. A range of a file that was checked is
//! read again without a check, as bytes of the local repository are: those are plain bytes.
//!
//! An entry is fetched once however many threads and processes want it: threads share the fetch (`single_flight`), and
//! processes hold a lock on the entry while they fetch (`disk`). How often the cache had what was read is in `hit_counts`.
//! The upstreams themselves are the neighbour, `upstream`; the order local, cache, upstream is that of `chain`.

mod disk;
mod hit_counts;
mod key;
mod single_flight;
mod size;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use lazyroot_proto::verified::Mismatch;
use lazyroot_proto::{Unverified, Verified};

use super::lru::WeightedLru;
use super::source::{Object, ObjectError, ObjectSource};
use super::upstream::Upstreams;
use disk::Disk;
pub use hit_counts::CacheUse;
use hit_counts::HitCounter;
use key::{Key, Part};
use single_flight::{Caller, Leader, SingleFlight};
pub use size::CacheSize;

/// Objects up to this size in bytes are fetched whole: guests do the same, and one request is less than two.
const WHOLE_MAX: u64 = 256 << 10;

/// Larger objects are fetched and kept in pieces of this many bytes: a guest's readahead asks for 128 KiB to 1 MiB, and
/// of what it asks for at random at most two halves of a piece come along unasked.
const PIECE: u64 = 64 << 10;

/// Pieces that are fetched with one request, at most: 4 MiB.
const RUN: usize = 64;

/// Memory for leaves in bytes: those of 2 GiB of objects under SHA-256.
const LEAVES_MEMORY: usize = 16 << 20;

/// Upstreams and what was fetched from them.
pub struct CachedUpstreams {
    upstreams: Upstreams,
    disk: Option<Disk>,
    hit_counter: Option<HitCounter>,
    fetches: SingleFlight,
    leaves: Mutex<WeightedLru<Verified>>,
}

impl CachedUpstreams {
    /// These upstreams with a cache of `limit` bytes in `dir`, or none if that is 0.
    ///
    /// # Errors
    /// If the folder cannot be made or used.
    pub fn open(upstreams: Upstreams, dir: &Path, limit: u64) -> Result<Self> {
        let disk = if limit == 0 { None } else { Some(Disk::open(dir, limit)?) };
        let hit_counter = disk.as_ref().map(|_| HitCounter::new(dir));
        let leaves = Mutex::new(WeightedLru::new(LEAVES_MEMORY));
        Ok(Self { upstreams, disk, hit_counter, fetches: SingleFlight::default(), leaves })
    }

    /// What the cache in `dir` holds in bytes, to within a MiB for each process that uses it, and how often it had what
    /// was wanted.
    pub(in crate::store) fn usage(dir: &Path) -> (u64, CacheUse) {
        (disk::usage(dir), CacheUse::read(dir))
    }

    /// The upstreams alone.
    pub fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    fn hit(&self, bytes: usize) {
        self.hit_counter.iter().for_each(|counter| counter.hit(bytes));
    }

    fn miss(&self, bytes: usize) {
        self.hit_counter.iter().for_each(|counter| counter.miss(bytes));
    }

    /// Something that is one entry: from the disk, checked, else from an upstream.
    fn entry(
        &self,
        key: Key,
        verify: impl Fn(Unverified) -> Result<Verified, Mismatch>,
        fetch: impl FnOnce() -> Result<Verified, ObjectError>,
    ) -> Result<Verified, ObjectError> {
        let leader = match self.fetches.join(key) {
            Caller::Follower(fetch) => {
                return fetch.wait().map_err(|why| ObjectError::Unavailable { id: key.id, why });
            }
            Caller::Leader(leader) => leader,
        };
        let load = |disk: &Disk| disk.load(key, &verify);
        let mut data = self.disk.as_ref().and_then(load);
        // Another process may fetch it: once it lets us in, it is there.
        let _locked = match data {
            None => self.disk.as_ref().map(|disk| disk.lock([key])),
            Some(_) => None,
        };
        if data.is_none() {
            data = self.disk.as_ref().and_then(load);
        }
        if let Some(data) = data {
            leader.finish(Ok(data.clone()));
            self.hit(data.len());
            return Ok(data);
        }
        let fetched = fetch();
        self.miss(fetched.as_ref().map_or(0, |data| data.len()));
        leader.finish(fetched.as_ref().map(Verified::clone).map_err(ObjectError::to_string));
        if let (Some(disk), Ok(data)) = (&self.disk, &fetched) {
            disk.store(key, data);
        }
        fetched
    }

    fn whole(&self, object: &Object) -> Result<Verified, ObjectError> {
        let key = Key { id: object.id, part: Part::Whole };
        self.entry(key, |data| data.verify_object(&object.id), || self.upstreams.whole(object))
    }

    /// Reads a range of an object that is kept in pieces.
    fn read_pieces(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        let leaves = self.leaves(object)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for part in pieces(object, offset, buf) {
            if self.disk.as_ref().is_some_and(|disk| disk.read(part.key, part.skip, part.buf)) {
                self.hit(part.buf.len());
                continue;
            }
            match self.fetches.join(part.key) {
                Caller::Follower(fetch) => theirs.push((part, fetch)),
                Caller::Leader(leader) => ours.push((part, leader)),
            }
        }
        // Ours first: if all waited for each other's fetches before they started, none would.
        while !ours.is_empty() {
            let follows = |pair: &[(PieceRead<'_>, Leader<'_>)]| pair[1].0.number == pair[0].0.number + 1;
            let together = 1 + ours.windows(2).take(RUN - 1).take_while(|pair| follows(pair)).count();
            let later = ours.split_off(together);
            self.fetch_run(object, &leaves, ours)?;
            ours = later;
        }
        for (mut part, fetch) in theirs {
            let piece = fetch.wait().map_err(|why| ObjectError::Unavailable { id: object.id, why })?;
            part.fill(&piece);
        }
        Ok(())
    }

    /// Gets pieces that follow one another: what is on disk from there, the rest with one request for each gap.
    fn fetch_run(
        &self,
        object: &Object,
        leaves: &Verified,
        run: Vec<(PieceRead<'_>, Leader<'_>)>,
    ) -> Result<(), ObjectError> {
        let _locked = self.disk.as_ref().map(|disk| disk.lock(run.iter().map(|(part, _)| part.key)));
        let mut gap: Vec<(PieceRead<'_>, Leader<'_>)> = Vec::new();
        for (mut part, leader) in run {
            let verify = |data: Unverified| match data.len() == part.len {
                true => data.verify_range(object.id.algorithm(), part.start(), leaves),
                false => Err(Mismatch { found: None }),
            };
            if let Some(piece) = self.disk.as_ref().and_then(|disk| disk.load(part.key, verify)) {
                part.fill(&piece);
                self.hit(part.buf.len());
                leader.finish(Ok(piece));
                continue;
            }
            if gap.last().is_some_and(|(last, _)| last.number + 1 != part.number) {
                self.fetch_gap(object, leaves, std::mem::take(&mut gap))?;
            }
            gap.push((part, leader));
        }
        self.fetch_gap(object, leaves, gap)
    }

    /// Fetches pieces that follow one another with one request.
    fn fetch_gap(
        &self,
        object: &Object,
        leaves: &Verified,
        gap: Vec<(PieceRead<'_>, Leader<'_>)>,
    ) -> Result<(), ObjectError> {
        let Some((first, _)) = gap.first() else { return Ok(()) };
        let len = gap.iter().map(|(part, _)| part.len).sum();
        let fetched = self.upstreams.range(object, leaves, first.start(), len);
        let mut rest = fetched.as_ref().map_or_else(|_| Verified::empty(), Verified::clone);
        for (mut part, leader) in gap {
            if rest.len() < part.len {
                leader.finish(Err(fetched.as_ref().map(|_| String::new()).unwrap_or_else(ObjectError::to_string)));
                continue;
            }
            let piece = rest.split_to(part.len);
            part.fill(&piece);
            self.miss(piece.len());
            leader.finish(Ok(piece.clone()));
            if let Some(disk) = &self.disk {
                disk.store(part.key, &piece);
            }
        }
        fetched.map(|_| ())
    }
}

impl ObjectSource for CachedUpstreams {
    fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > object.size {
            return Err(ObjectError::Short { id: object.id, offset, end });
        }
        if buf.is_empty() {
            return Ok(());
        }
        if object.size > WHOLE_MAX {
            return self.read_pieces(object, offset, buf);
        }
        let key = Key { id: object.id, part: Part::Whole };
        if self.disk.as_ref().is_some_and(|disk| disk.read(key, offset, buf)) {
            self.hit(buf.len());
        } else {
            let data = self.whole(object)?;
            buf.copy_from_slice(&data[offset as usize..end as usize]);
        }
        Ok(())
    }

    fn read_cached(&self, object: &Object, offset: u64, buf: &mut [u8]) -> bool {
        let Some(disk) = &self.disk else { return false };
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > object.size) {
            return false;
        }
        let cached = match object.size <= WHOLE_MAX {
            true => disk.read_cached(Key { id: object.id, part: Part::Whole }, offset, buf),
            false => {
                pieces(object, offset, buf).into_iter().all(|part| disk.read_cached(part.key, part.skip, part.buf))
            }
        };
        if cached {
            self.hit(buf.len());
        }
        cached
    }

    fn leaves(&self, object: &Object) -> Result<Verified, ObjectError> {
        let known = self.leaves.lock().unwrap_or_else(PoisonError::into_inner).get(&object.id);
        if let Some(leaves) = known {
            return Ok(leaves);
        }
        let leaves = if object.size <= WHOLE_MAX {
            self.whole(object)?.block_hashes(object.id.algorithm())
        } else {
            let key = Key { id: object.id, part: Part::Leaves };
            let verify = |leaves: Unverified| leaves.verify_level(&object.id, object.size, 0);
            self.entry(key, verify, || self.upstreams.leaves(object))?
        };
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner).insert(object.id, leaves.len(), leaves.clone());
        Ok(leaves)
    }
}

/// A part of a read that lies in one piece.
struct PieceRead<'a> {
    key: Key,
    /// Which piece of the object.
    number: u32,
    /// The piece's length in bytes: less than [`PIECE`] at the object's end.
    len: usize,
    /// Where in the piece the part begins, in bytes.
    skip: u64,
    /// Where it goes.
    buf: &'a mut [u8],
}

impl PieceRead<'_> {
    /// Where the piece begins in the object, in bytes.
    fn start(&self) -> u64 {
        u64::from(self.number) * PIECE
    }

    fn fill(&mut self, piece: &[u8]) {
        let skip = self.skip as usize;
        self.buf.copy_from_slice(&piece[skip..skip + self.buf.len()]);
    }
}

/// The pieces that a read touches.
fn pieces<'a>(object: &Object, offset: u64, buf: &'a mut [u8]) -> Vec<PieceRead<'a>> {
    let (mut offset, mut rest, mut parts) = (offset, buf, Vec::new());
    while !rest.is_empty() {
        let (number, skip) = ((offset / PIECE) as u32, offset % PIECE);
        let len = (object.size - u64::from(number) * PIECE).min(PIECE) as usize;
        let (buf, later) = rest.split_at_mut(rest.len().min(len - skip as usize));
        offset += buf.len() as u64;
        rest = later;
        parts.push(PieceRead { key: Key { id: object.id, part: Part::Piece(number) }, number, len, skip, buf });
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use lazyroot_proto::{Algorithm, verity};

    use super::*;
    use crate::store::objects::upstream::{RemoteImage, Upstream};

    /// An upstream that has one object, slowly, and may damage what it sends.
    struct One {
        object: Object,
        data: Vec<u8>,
        requests: AtomicU64,
        damaged: bool,
    }

    impl One {
        fn new(len: usize) -> Self {
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let object = Object { id: verity::digest(Algorithm::Sha256, &data), size: len as u64 };
            Self { object, data, requests: AtomicU64::new(0), damaged: false }
        }

        fn damaged(len: usize) -> Self {
            Self { damaged: true, ..Self::new(len) }
        }
    }

    impl Upstream for One {
        fn name(&self) -> &str {
            if self.damaged { "the bad one" } else { "the good one" }
        }
        fn imports(&self) -> bool {
            false
        }
        fn check(&self) -> Result<()> {
            Ok(())
        }
        fn find(&self, _reference: &str) -> Result<Option<RemoteImage>> {
            Ok(None)
        }
        fn manifest(&self, _image: &RemoteImage) -> Result<Unverified> {
            anyhow::bail!("it has none")
        }
        fn read(&self, object: &Object, offset: u64, len: usize) -> Result<Unverified, ObjectError> {
            self.requests.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(*object, self.object);
            let mut data = self.data[offset as usize..][..len].to_vec();
            if self.damaged {
                data[len / 2] ^= 1;
            }
            Ok(data.into())
        }
        fn leaves(&self, object: &Object) -> Result<Unverified, ObjectError> {
            assert_eq!(*object, self.object);
            Ok(verity::leaves(Algorithm::Sha256, &self.data).into())
        }
    }

    fn cached(dir: &Path, upstreams: Vec<Arc<One>>) -> CachedUpstreams {
        let upstreams = upstreams.into_iter().map(|upstream| upstream as Arc<dyn Upstream>).collect();
        CachedUpstreams::open(Upstreams::new(upstreams), &dir.join("cache"), 1 << 30).unwrap()
    }

    #[test]
    fn a_read_is_exact_from_upstream_from_disk_and_in_another_process() {
        for len in [1, 5000, WHOLE_MAX as usize, WHOLE_MAX as usize + 1, 700_001] {
            let (dir, one) = (tempfile::tempdir().unwrap(), Arc::new(One::new(len)));
            let cached_once = cached(dir.path(), vec![one.clone()]);
            let again = cached(dir.path(), vec![one.clone()]);
            for source in [&cached_once, &cached_once, &again] {
                for (offset, part) in [(0, len), (len / 2, 1), (len / 3, len / 2), (len - 1, 1), (len, 0)] {
                    let mut buf = vec![0; part];
                    source.read(&one.object, offset as u64, &mut buf).unwrap();
                    assert!(buf == one.data[offset..][..part], "{part} bytes at {offset} of {len}");
                    assert!(
                        part == 0
                            || !cfg!(target_os = "linux")
                            || source.read_cached(&one.object, offset as u64, &mut buf)
                    );
                    assert!(buf == one.data[offset..][..part]);
                }
                assert_eq!(*source.leaves(&one.object).unwrap(), verity::leaves(Algorithm::Sha256, &one.data));
                let beyond = source.read(&one.object, len as u64, &mut [0]);
                assert!(matches!(beyond, Err(ObjectError::Short { .. })));
            }
            assert_eq!(one.requests.load(Ordering::Relaxed), 1, "{len} bytes are one request");
        }
    }

    #[test]
    fn only_the_pieces_that_are_read_are_fetched() {
        let (dir, one) = (tempfile::tempdir().unwrap(), Arc::new(One::new(10 << 20)));
        let source = cached(dir.path(), vec![one.clone()]);
        let read = |offset: u64, len: usize| source.read(&one.object, offset, &mut vec![0; len]).unwrap();
        read(5 << 20, 4096);
        let leaves = verity::leaves_len(Algorithm::Sha256, 10 << 20);
        assert_eq!(source.upstreams().traffic().bytes, leaves + PIECE);
        // Across the hole between two pieces that are there: two requests for what is around them.
        read((5 << 20) + 2 * PIECE, 4096);
        read((5 << 20) - PIECE, 4 * PIECE as usize);
        assert_eq!(source.upstreams().traffic().bytes, leaves + 4 * PIECE);
        assert_eq!(one.requests.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_hundred_that_want_the_same_make_one_request() {
        for len in [5000, 400_000] {
            let (dir, one) = (tempfile::tempdir().unwrap(), Arc::new(One::new(len)));
            // Four processes would not share more than the folder either.
            let sources: Vec<_> = (0..4).map(|_| cached(dir.path(), vec![one.clone()])).collect();
            std::thread::scope(|scope| {
                for number in 0..100 {
                    let (source, one) = (&sources[number % 4], &one);
                    scope.spawn(move || {
                        let mut buf = vec![0; len];
                        source.read(&one.object, 0, &mut buf).unwrap();
                        assert!(buf == one.data);
                    });
                }
            });
            assert_eq!(one.requests.load(Ordering::Relaxed), 1, "{len} bytes");
        }
    }

    #[test]
    fn what_is_damaged_comes_from_the_next_upstream_and_is_counted() {
        for len in [5000, 400_000] {
            let (dir, bad, good) = (tempfile::tempdir().unwrap(), Arc::new(One::damaged(len)), Arc::new(One::new(len)));
            let source = cached(dir.path(), vec![bad.clone(), good.clone()]);
            let mut buf = vec![0; len];
            source.read(&good.object, 0, &mut buf).unwrap();
            assert!(buf == good.data);
            assert_eq!(source.upstreams().traffic().damaged, 1);
            let other = tempfile::tempdir().unwrap();
            let alone = cached(other.path(), vec![bad]);
            let error = alone.read(&good.object, 0, &mut buf).unwrap_err().to_string();
            assert!(error.contains("the bad one sent it damaged"), "{error}");
            assert!(error.contains(&good.object.id.to_string()), "{error}");
        }
    }

    #[test]
    fn without_a_folder_everything_still_reads() {
        let one = Arc::new(One::new(400_000));
        let upstreams = Upstreams::new(vec![one.clone() as Arc<dyn Upstream>]);
        let source = CachedUpstreams::open(upstreams, Path::new("/nowhere"), 0).unwrap();
        let mut buf = vec![0; 100_000];
        source.read(&one.object, 123_456, &mut buf).unwrap();
        assert!(buf == one.data[123_456..223_456]);
    }
}
