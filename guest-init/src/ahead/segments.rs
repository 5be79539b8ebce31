//! Segments: verified ranges of large objects that are kept, for a boot profile or a run, until they are read.
//!
//! Segments never overlap: what a run has brought, or will, the profile does not bring again, and the other way around.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lazyroot_proto::reads::{Extent, Origin};
use lazyroot_proto::verified::Verified;
use lazyroot_proto::verity::BLOCK;

use crate::content::object::cut;
use crate::link::REQUEST_DEADLINE;

/// Blocks of a segment at most: one bit each says whether it was read.
pub const MAX_BLOCKS: u32 = u64::BITS;

/// How long a read waits for a segment that the boot profile brings before it asks for itself: as long as half a heartbeat,
/// after which something is wrong. The profile's thread takes one thing after the other.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub struct Segments {
    /// By position and first block.
    segments: Mutex<BTreeMap<Key, Segment>>,
    changed: Condvar,
}

type Key = (u32, u32);

struct Segment {
    blocks: u32,
    owner: Owner,
    /// `None` while it is on its way.
    data: Option<Verified>,
    /// A bit for each block that was read.
    read: u64,
}

/// For what a segment was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// For the boot profile: a program is expected to read it.
    Profile,
    /// For the boot profile, and the kernel reads it ahead of programs: nobody sees which of them read it.
    Kernel,
    /// For a run.
    Run,
}

impl Owner {
    /// What the host is told of a read that the segment answers.
    fn origin(self) -> Origin {
        match self {
            Self::Profile => Origin::Profile,
            Self::Kernel => Origin::Preloaded,
            Self::Run => Origin::Neighbour,
        }
    }
}

/// A read that segments answer.
pub struct SegmentRead {
    /// The bytes.
    pub bytes: Verified,
    /// Who brought the first of them.
    pub origin: Origin,
    /// How many of them the boot profile brought and a program reads for the first time.
    pub profile_bytes: u64,
    /// How many of them a run brought and a program reads for the first time.
    pub run_bytes: u64,
    /// Bytes of memory that were freed with it, of what the boot profile brought.
    pub freed: usize,
}

impl Segments {
    /// Makes place for the blocks of `extent` that are neither here nor on their way, and that `leave_out` does not name.
    /// Returns them, to be asked for: from now on they are on their way. Nothing, if the extent is longer than a segment.
    pub fn insert_absent(&self, extent: Extent, owner: Owner, leave_out: impl Fn(u32) -> bool) -> Vec<Extent> {
        let mut segments = self.lock();
        let mut gaps: Vec<Extent> = Vec::new();
        if extent.blocks <= MAX_BLOCKS {
            let end = extent.block.saturating_add(extent.blocks);
            for block in
                (extent.block..end).filter(|block| !leave_out(*block) && !covers(&segments, extent.position, *block))
            {
                match gaps.last_mut() {
                    Some(gap) if gap.block + gap.blocks == block => gap.blocks += 1,
                    _ => gaps.push(Extent { block, blocks: 1, ..extent }),
                }
            }
        }
        for gap in &gaps {
            segments.insert(key(*gap), Segment { blocks: gap.blocks, owner, data: None, read: 0 });
        }
        gaps
    }

    /// Puts the data of a segment in its place, or gives the place up if there is none.
    pub fn fill(&self, extent: Extent, data: Option<Verified>) {
        let mut segments = self.lock();
        // It may have been dropped, and another may have its place.
        let on_its_way = |segment: &&mut Segment| segment.blocks == extent.blocks && segment.data.is_none();
        if let Some(segment) = segments.get_mut(&key(extent)).filter(on_its_way) {
            match data {
                Some(data) => segment.data = Some(data),
                None => drop(segments.remove(&key(extent))),
            }
        }
        self.changed.notify_all();
    }

    /// The kernel is about to read the segment at `extent` ahead of programs. Returns how many bytes of it programs have
    /// read; `None` if it is not here any more.
    pub fn give_to_kernel(&self, extent: Extent) -> Option<u64> {
        let mut segments = self.lock();
        let segment = segments
            .get_mut(&key(extent))
            .filter(|segment| segment.owner == Owner::Profile && segment.data.is_some())?;
        segment.owner = Owner::Kernel;
        Some(u64::from(segment.read.count_ones()) * BLOCK as u64)
    }

    /// Whether the kernel reads this block ahead of programs, or may.
    pub fn is_kernels(&self, position: u32, block: u32) -> bool {
        let segments = self.lock();
        segment_at(&segments, position, block).is_some_and(|(key, _)| segments[&key].owner == Owner::Kernel)
    }

    /// All the bytes of `extent`, `len` of them, if segments hold them, or will soon.
    pub fn read(&self, extent: Extent, len: usize) -> Option<SegmentRead> {
        self.read_within(extent, len, |owner| match owner {
            Owner::Profile => PATIENCE,
            // What is on its way arrives, or fails, within a request's time: to ask again would be no faster.
            _ => REQUEST_DEADLINE,
        })
    }

    fn read_within(&self, extent: Extent, len: usize, patience: impl Fn(Owner) -> Duration) -> Option<SegmentRead> {
        let started = Instant::now();
        let mut segments = self.lock();
        loop {
            let covering = covering(&segments, extent)?;
            let absent = covering.iter().map(|key| &segments[key]).filter(|segment| segment.data.is_none());
            let Some(patience) = absent.map(|segment| patience(segment.owner)).min() else {
                return Some(collect(&mut segments, &covering, extent, len));
            };
            let left = patience.checked_sub(started.elapsed())?;
            segments = self.changed.wait_timeout(segments, left).expect("no panic under the lock").0;
        }
    }

    /// Drops what runs brought of the object at `position`.
    pub fn drop_run(&self, position: u32) {
        self.lock().retain(|key, segment| key.0 != position || segment.owner != Owner::Run);
        self.changed.notify_all();
    }

    /// Drops what the boot profile brought; returns how much memory that was, in bytes.
    pub fn drop_profile(&self) -> usize {
        let mut segments = self.lock();
        let dropped = segments.extract_if(.., |_, segment| segment.owner != Owner::Run);
        let freed = dropped.filter_map(|(_, segment)| segment.data).map(|data| data.len()).sum();
        self.changed.notify_all();
        freed
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Segment>> {
        self.segments.lock().expect("no panic under the lock")
    }
}

fn key(extent: Extent) -> Key {
    (extent.position, extent.block)
}

/// The segment that has this block, and where the segment ends.
fn segment_at(segments: &BTreeMap<Key, Segment>, position: u32, block: u32) -> Option<(Key, u32)> {
    let (key, segment) = segments.range((position, 0)..=(position, block)).next_back()?;
    let end = key.1 + segment.blocks;
    (block < end).then_some((*key, end))
}

fn covers(segments: &BTreeMap<Key, Segment>, position: u32, block: u32) -> bool {
    segment_at(segments, position, block).is_some()
}

/// Segments that together have every block of `extent`, in order.
fn covering(segments: &BTreeMap<Key, Segment>, extent: Extent) -> Option<Vec<Key>> {
    let end = extent.block.checked_add(extent.blocks)?;
    let mut found = Vec::new();
    let mut covered = extent.block;
    while covered < end {
        let (key, segment_end) = segment_at(segments, extent.position, covered)?;
        found.push(key);
        covered = segment_end;
    }
    Some(found)
}

/// The bytes of `extent` out of the segments with these keys, all of which are here. A segment that is read to its end
/// is dropped.
fn collect(segments: &mut BTreeMap<Key, Segment>, keys: &[Key], extent: Extent, len: usize) -> SegmentRead {
    let origin = keys.first().map_or(Origin::Host, |key| segments[key].owner.origin());
    let mut read = SegmentRead { bytes: Verified::empty(), origin, profile_bytes: 0, run_bytes: 0, freed: 0 };
    // Only if there are several: one has all the bytes in one buffer.
    let mut parts = Vec::new();
    let mut collected = 0;
    for key in keys {
        let segment = segments.get_mut(key).expect("the key was found under the same lock");
        let data = segment.data.clone().expect("all of them are here");
        let first = (extent.block as usize + collected / BLOCK) - key.1 as usize;
        let end = data.len().min(first * BLOCK + len - collected);
        let start = end.min(first * BLOCK);
        collected += end - start;
        let last = end.div_ceil(BLOCK);
        let bits = (first..last).fold(0u64, |bits, block| bits | 1 << block);
        let unread = u64::from((bits & !segment.read).count_ones()) * BLOCK as u64;
        segment.read |= bits;
        match segment.owner {
            Owner::Profile => read.profile_bytes += unread,
            Owner::Run => read.run_bytes += unread,
            Owner::Kernel => (),
        }
        if segment.read.count_ones() as usize >= data.len().div_ceil(BLOCK) {
            read.freed += if segment.owner == Owner::Run { 0 } else { data.len() };
            segments.remove(key);
        }
        let part = cut(data, start..end);
        if keys.len() > 1 {
            parts.push(part);
        } else {
            read.bytes = part;
        }
    }
    if keys.len() > 1 {
        read.bytes = Verified::concat(&parts);
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::verified::Unverified;
    use lazyroot_proto::{Algorithm, verity};
    use std::thread;

    fn extent(block: u32, blocks: u32) -> Extent {
        Extent { position: 7, block, blocks }
    }

    fn data(block: usize, len: usize) -> Verified {
        let bytes: Vec<u8> = (block * BLOCK..block * BLOCK + len).map(|byte| (byte / BLOCK) as u8).collect();
        let id = verity::digest(Algorithm::Sha256, &bytes);
        Unverified::from(bytes).verify_object(&id).unwrap()
    }

    fn read(segments: &Segments, extent: Extent, len: usize) -> Option<SegmentRead> {
        segments.read_within(extent, len, |_| Duration::from_secs(2))
    }

    fn insert(segments: &Segments, extent: Extent, owner: Owner) -> Vec<(u32, u32)> {
        segments.insert_absent(extent, owner, |_| false).iter().map(|gap| (gap.block, gap.blocks)).collect()
    }

    fn put(segments: &Segments, block: u32, len: usize, owner: Owner) {
        let blocks = len.div_ceil(BLOCK) as u32;
        assert_eq!(insert(segments, extent(block, blocks), owner), [(block, blocks)]);
        segments.fill(extent(block, blocks), Some(data(block as usize, len)));
    }

    #[test]
    fn a_read_is_put_together_from_segments_or_not_at_all() {
        let segments = Segments::default();
        put(&segments, 4, 4 * BLOCK, Owner::Profile);
        put(&segments, 8, 2 * BLOCK + 100, Owner::Run);
        let found = read(&segments, extent(6, 3), 3 * BLOCK).unwrap();
        assert_eq!(found.bytes, data(6, 3 * BLOCK));
        assert_eq!((found.profile_bytes, found.run_bytes, found.freed), (2 * BLOCK as u64, BLOCK as u64, 0));
        assert_eq!(found.origin, Origin::Profile);
        let end = read(&segments, extent(9, 2), BLOCK + 100).unwrap();
        assert_eq!((&end.bytes, end.freed), (&data(9, BLOCK + 100), 0), "of the profile's nothing");
        for (block, blocks) in [(3, 2), (10, 1), (7, 2)] {
            assert!(read(&segments, extent(block, blocks), blocks as usize * BLOCK).is_none(), "{blocks} at {block}");
        }
        let rest = read(&segments, extent(4, 4), 4 * BLOCK).unwrap();
        assert_eq!((rest.profile_bytes, rest.run_bytes, rest.freed), (2 * BLOCK as u64, 0, 4 * BLOCK));
        assert!(segments.lock().is_empty(), "what was read is dropped");
    }

    #[test]
    fn what_the_kernel_was_given_is_read_unseen() {
        let segments = Segments::default();
        put(&segments, 0, 4 * BLOCK, Owner::Profile);
        put(&segments, 4, BLOCK, Owner::Run);
        assert_eq!(segments.give_to_kernel(extent(4, 1)), None, "what came in a run is for the program");
        assert_eq!(read(&segments, extent(0, 1), BLOCK).unwrap().profile_bytes, BLOCK as u64);
        assert!(!segments.is_kernels(7, 1));
        assert_eq!(segments.give_to_kernel(extent(0, 4)), Some(BLOCK as u64));
        assert!(segments.is_kernels(7, 1));
        let rest = read(&segments, extent(0, 4), 4 * BLOCK).unwrap();
        assert_eq!((rest.origin, rest.profile_bytes, rest.freed), (Origin::Preloaded, 0, 4 * BLOCK));
        assert_eq!(segments.give_to_kernel(extent(0, 4)), None, "it is the kernel's");
    }

    #[test]
    fn each_lets_go_of_what_is_its_own() {
        let segments = Segments::default();
        put(&segments, 0, BLOCK, Owner::Run);
        put(&segments, 1, BLOCK, Owner::Profile);
        segments.drop_run(6);
        segments.drop_run(8);
        assert!(read(&segments, extent(0, 1), BLOCK).is_some_and(|found| found.bytes.len() == BLOCK));
        put(&segments, 0, BLOCK, Owner::Run);
        segments.drop_run(7);
        assert!(read(&segments, extent(0, 1), BLOCK).is_none());
        put(&segments, 0, BLOCK, Owner::Run);
        assert_eq!((segments.drop_profile(), segments.drop_profile()), (BLOCK, 0));
        assert!(read(&segments, extent(1, 1), BLOCK).is_none() && read(&segments, extent(0, 1), BLOCK).is_some());
    }

    #[test]
    fn what_is_here_or_on_its_way_is_not_brought_again() {
        let segments = Segments::default();
        put(&segments, 4, 4 * BLOCK, Owner::Run);
        assert_eq!(insert(&segments, extent(5, 2), Owner::Profile), []);
        assert_eq!(insert(&segments, extent(0, 16), Owner::Profile), [(0, 4), (8, 8)]);
        assert_eq!(insert(&segments, extent(0, 17), Owner::Run), [(16, 1)]);
        let known = segments.insert_absent(extent(20, 4), Owner::Profile, |block| block != 22);
        assert_eq!(known, [extent(22, 1)]);
        assert_eq!(insert(&segments, extent(0, MAX_BLOCKS + 1), Owner::Profile), []);
        // One that was let go of on its way has no place any more.
        segments.drop_run(7);
        assert_eq!(insert(&segments, extent(16, 2), Owner::Profile), [(16, 2)]);
        segments.fill(extent(16, 1), Some(data(16, BLOCK)));
        assert!(segments.read_within(extent(16, 1), BLOCK, |_| Duration::ZERO).is_none());
    }

    #[test]
    fn a_read_waits_for_a_segment_on_its_way_and_goes_on_if_it_does_not_come() {
        for arrives in [true, false] {
            let segments = Segments::default();
            assert_eq!(insert(&segments, extent(0, 1), Owner::Profile).len(), 1);
            thread::scope(|scope| {
                let reader = scope.spawn(|| read(&segments, extent(0, 1), BLOCK));
                thread::sleep(Duration::from_millis(5));
                segments.fill(extent(0, 1), arrives.then(|| data(0, BLOCK)));
                assert_eq!(reader.join().unwrap().is_some(), arrives);
            });
        }
    }
}
