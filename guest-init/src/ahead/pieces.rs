//! Verified pieces of large objects that came ahead of need, for a boot profile or a run, until they are read.
//!
//! Pieces never overlap, whoever asked for them: what one has brought, or will, the other does not bring again.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lazyroot_proto::reads::{Extent, Origin};
use lazyroot_proto::verity::BLOCK;

use crate::link::REQUEST_DEADLINE;

/// Blocks of a piece at most: one bit each says whether it was read.
pub const MAX_BLOCKS: u32 = u64::BITS;

/// How long a read waits for a piece that the boot profile brings before it asks for itself: as long as half a heartbeat,
/// after which something is wrong. The profile's thread takes one thing after the other.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub struct Pieces {
    /// By position and first block.
    pieces: Mutex<BTreeMap<Key, Piece>>,
    arrived: Condvar,
}

type Key = (u32, u32);

struct Piece {
    blocks: u32,
    origin: Origin,
    /// `None` while it is on its way.
    data: Option<Arc<Vec<u8>>>,
    /// The blocks that were read.
    read: u64,
}

/// Bytes found in pieces.
pub struct Found {
    /// A buffer with the bytes: a piece that has them all, or a new one.
    pub data: Arc<Vec<u8>>,
    /// Where they begin in it.
    pub start: usize,
    /// Who brought the first of them.
    pub origin: Origin,
    /// How many of them nobody had read before: those that the boot profile brought and programs ask for, and those that
    /// came in runs.
    pub fresh: (u64, u64),
    /// Bytes of memory that were freed with it, of what the boot profile brought.
    pub freed: usize,
}

impl Pieces {
    /// `extent` is wanted on behalf of `origin`, but for the blocks that `is_here` knows of. Returns the parts of it that
    /// are neither here nor expected: from now on they are. Nothing, if it is longer than a piece may be.
    pub fn expect(&self, extent: Extent, origin: Origin, is_here: impl Fn(u32) -> bool) -> Vec<Extent> {
        let mut pieces = self.lock();
        let mut gaps: Vec<Extent> = Vec::new();
        if extent.blocks <= MAX_BLOCKS {
            let end = extent.block.saturating_add(extent.blocks);
            for block in
                (extent.block..end).filter(|block| !is_here(*block) && !covers(&pieces, extent.position, *block))
            {
                match gaps.last_mut() {
                    Some(gap) if gap.block + gap.blocks == block => gap.blocks += 1,
                    _ => gaps.push(Extent { block, blocks: 1, ..extent }),
                }
            }
        }
        for gap in &gaps {
            pieces.insert(key(*gap), Piece { blocks: gap.blocks, origin, data: None, read: 0 });
        }
        gaps
    }

    /// The piece has come, verified; or will not.
    pub fn arrive(&self, extent: Extent, data: Option<Vec<u8>>) {
        let mut pieces = self.lock();
        // It may have been let go of, and another may have its place.
        let expected = |piece: &&mut Piece| piece.blocks == extent.blocks && piece.data.is_none();
        if let Some(piece) = pieces.get_mut(&key(extent)).filter(expected) {
            match data {
                Some(data) => piece.data = Some(Arc::new(data)),
                None => drop(pieces.remove(&key(extent))),
            }
        }
        self.arrived.notify_all();
    }

    /// The kernel is about to read the piece at `extent` ahead of programs: who reads it from now on is not seen. Returns how
    /// many bytes of it programs have asked for; `None` if it is not here any more.
    pub fn hand_over(&self, extent: Extent) -> Option<u64> {
        let mut pieces = self.lock();
        let piece =
            pieces.get_mut(&key(extent)).filter(|piece| piece.origin == Origin::Profile && piece.data.is_some())?;
        piece.origin = Origin::Preloaded;
        Some(u64::from(piece.read.count_ones()) * BLOCK as u64)
    }

    /// Whether the kernel reads this block ahead of programs, or may.
    pub fn is_handed_over(&self, position: u32, block: u32) -> bool {
        let pieces = self.lock();
        piece_at(&pieces, position, block).is_some_and(|(key, _)| pieces[&key].origin == Origin::Preloaded)
    }

    /// All the bytes of `extent`, `len` of them, if pieces hold them, or will soon.
    pub fn take(&self, extent: Extent, len: usize) -> Option<Found> {
        self.take_within(extent, len, |origin| match origin {
            Origin::Profile => PATIENCE,
            // What is on its way comes, or fails, within a request's time: to ask again would be no faster.
            _ => REQUEST_DEADLINE,
        })
    }

    fn take_within(&self, extent: Extent, len: usize, patience: impl Fn(Origin) -> Duration) -> Option<Found> {
        let started = Instant::now();
        let mut pieces = self.lock();
        loop {
            let covering = covering(&pieces, extent)?;
            let absent = covering.iter().map(|key| &pieces[key]).filter(|piece| piece.data.is_none());
            let Some(patience) = absent.map(|piece| patience(piece.origin)).min() else {
                return Some(collect(&mut pieces, &covering, extent, len));
            };
            let left = patience.checked_sub(started.elapsed())?;
            pieces = self.arrived.wait_timeout(pieces, left).expect("no panic under the lock").0;
        }
    }

    /// Lets go of what runs brought of the object at `position`.
    pub fn drop_run(&self, position: u32) {
        self.lock().retain(|key, piece| key.0 != position || piece.origin != Origin::Neighbour);
        self.arrived.notify_all();
    }

    /// Lets go of what the boot profile brought; returns how much memory that was, in bytes.
    pub fn drop_profile(&self) -> usize {
        let mut pieces = self.lock();
        let gone = pieces.extract_if(.., |_, piece| piece.origin != Origin::Neighbour);
        let freed = gone.filter_map(|(_, piece)| piece.data).map(|data| data.len()).sum();
        self.arrived.notify_all();
        freed
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Piece>> {
        self.pieces.lock().expect("no panic under the lock")
    }
}

fn key(extent: Extent) -> Key {
    (extent.position, extent.block)
}

/// The piece that has this block, and where the piece ends.
fn piece_at(pieces: &BTreeMap<Key, Piece>, position: u32, block: u32) -> Option<(Key, u32)> {
    let (key, piece) = pieces.range((position, 0)..=(position, block)).next_back()?;
    let end = key.1 + piece.blocks;
    (block < end).then_some((*key, end))
}

fn covers(pieces: &BTreeMap<Key, Piece>, position: u32, block: u32) -> bool {
    piece_at(pieces, position, block).is_some()
}

/// Pieces that together have every block of `extent`, in order.
fn covering(pieces: &BTreeMap<Key, Piece>, extent: Extent) -> Option<Vec<Key>> {
    let end = extent.block.checked_add(extent.blocks)?;
    let mut found = Vec::new();
    let mut covered = extent.block;
    while covered < end {
        let (key, piece_end) = piece_at(pieces, extent.position, covered)?;
        found.push(key);
        covered = piece_end;
    }
    Some(found)
}

fn collect(pieces: &mut BTreeMap<Key, Piece>, keys: &[Key], extent: Extent, len: usize) -> Found {
    let origin = keys.first().map_or(Origin::Host, |key| pieces[key].origin);
    let mut found = Found { data: Arc::default(), start: 0, origin, fresh: (0, 0), freed: 0 };
    let mut joined = Vec::with_capacity(if keys.len() > 1 { len } else { 0 });
    let mut collected = 0;
    for key in keys {
        let piece = pieces.get_mut(key).expect("the key was found under the same lock");
        let data = piece.data.clone().expect("all of them have arrived");
        let first = (extent.block as usize + collected / BLOCK) - key.1 as usize;
        let end = data.len().min(first * BLOCK + len - collected);
        let start = end.min(first * BLOCK);
        collected += end - start;
        let last = end.div_ceil(BLOCK);
        let bits = (first..last).fold(0u64, |bits, block| bits | 1 << block);
        let fresh = u64::from((bits & !piece.read).count_ones()) * BLOCK as u64;
        piece.read |= bits;
        match piece.origin {
            Origin::Profile => found.fresh.0 += fresh,
            Origin::Neighbour => found.fresh.1 += fresh,
            _ => (),
        }
        if piece.read.count_ones() as usize >= data.len().div_ceil(BLOCK) {
            found.freed += if piece.origin == Origin::Neighbour { 0 } else { data.len() };
            pieces.remove(key);
        }
        if keys.len() > 1 {
            joined.extend_from_slice(&data[start..end]);
        } else {
            (found.data, found.start) = (data, start);
        }
    }
    if keys.len() > 1 {
        found.data = Arc::new(joined);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn extent(block: u32, blocks: u32) -> Extent {
        Extent { position: 7, block, blocks }
    }

    fn data(block: usize, len: usize) -> Vec<u8> {
        (block * BLOCK..block * BLOCK + len).map(|byte| (byte / BLOCK) as u8).collect()
    }

    fn take(pieces: &Pieces, extent: Extent, len: usize) -> Option<Found> {
        pieces.take_within(extent, len, |_| Duration::from_secs(2))
    }

    fn expect(pieces: &Pieces, wanted: Extent, origin: Origin) -> Vec<(u32, u32)> {
        pieces.expect(wanted, origin, |_| false).iter().map(|gap| (gap.block, gap.blocks)).collect()
    }

    fn put(pieces: &Pieces, block: u32, len: usize, origin: Origin) {
        let blocks = len.div_ceil(BLOCK) as u32;
        assert_eq!(expect(pieces, extent(block, blocks), origin), [(block, blocks)]);
        pieces.arrive(extent(block, blocks), Some(data(block as usize, len)));
    }

    #[test]
    fn a_read_is_put_together_from_pieces_or_not_at_all() {
        let pieces = Pieces::default();
        put(&pieces, 4, 4 * BLOCK, Origin::Profile);
        put(&pieces, 8, 2 * BLOCK + 100, Origin::Neighbour);
        let found = take(&pieces, extent(6, 3), 3 * BLOCK).unwrap();
        assert_eq!((&*found.data, found.start), (&data(6, 3 * BLOCK), 0));
        assert_eq!((found.origin, found.fresh, found.freed), (Origin::Profile, (2 * BLOCK as u64, BLOCK as u64), 0));
        let end = take(&pieces, extent(9, 2), BLOCK + 100).unwrap();
        assert_eq!((&end.data[end.start..], end.freed), (&*data(9, BLOCK + 100), 0), "of the profile's nothing");
        for (block, blocks) in [(3, 2), (10, 1), (7, 2)] {
            assert!(take(&pieces, extent(block, blocks), blocks as usize * BLOCK).is_none(), "{blocks} at {block}");
        }
        let rest = take(&pieces, extent(4, 4), 4 * BLOCK).unwrap();
        assert_eq!((rest.fresh, rest.freed), ((2 * BLOCK as u64, 0), 4 * BLOCK));
        assert!(pieces.lock().is_empty(), "what was read leaves");
    }

    #[test]
    fn what_was_handed_over_is_read_unseen() {
        let pieces = Pieces::default();
        put(&pieces, 0, 4 * BLOCK, Origin::Profile);
        put(&pieces, 4, BLOCK, Origin::Neighbour);
        assert_eq!(pieces.hand_over(extent(4, 1)), None, "what came in a run is for the program");
        assert_eq!(take(&pieces, extent(0, 1), BLOCK).unwrap().fresh, (BLOCK as u64, 0));
        assert!(!pieces.is_handed_over(7, 1));
        assert_eq!(pieces.hand_over(extent(0, 4)), Some(BLOCK as u64));
        assert!(pieces.is_handed_over(7, 1));
        let rest = take(&pieces, extent(0, 4), 4 * BLOCK).unwrap();
        assert_eq!((rest.origin, rest.fresh, rest.freed), (Origin::Preloaded, (0, 0), 4 * BLOCK));
        assert_eq!(pieces.hand_over(extent(0, 4)), None, "it is the kernel's");
    }

    #[test]
    fn each_lets_go_of_what_is_its_own() {
        let pieces = Pieces::default();
        put(&pieces, 0, BLOCK, Origin::Neighbour);
        put(&pieces, 1, BLOCK, Origin::Profile);
        pieces.drop_run(6);
        pieces.drop_run(8);
        assert!(take(&pieces, extent(0, 1), BLOCK).is_some_and(|found| found.data.len() == BLOCK));
        put(&pieces, 0, BLOCK, Origin::Neighbour);
        pieces.drop_run(7);
        assert!(take(&pieces, extent(0, 1), BLOCK).is_none());
        put(&pieces, 0, BLOCK, Origin::Neighbour);
        assert_eq!((pieces.drop_profile(), pieces.drop_profile()), (BLOCK, 0));
        assert!(take(&pieces, extent(1, 1), BLOCK).is_none() && take(&pieces, extent(0, 1), BLOCK).is_some());
    }

    #[test]
    fn what_is_here_or_on_its_way_is_not_brought_again() {
        let pieces = Pieces::default();
        put(&pieces, 4, 4 * BLOCK, Origin::Neighbour);
        assert_eq!(expect(&pieces, extent(5, 2), Origin::Profile), []);
        assert_eq!(expect(&pieces, extent(0, 16), Origin::Profile), [(0, 4), (8, 8)]);
        assert_eq!(expect(&pieces, extent(0, 17), Origin::Neighbour), [(16, 1)]);
        let known = pieces.expect(extent(20, 4), Origin::Profile, |block| block != 22);
        assert_eq!(known, [extent(22, 1)]);
        assert_eq!(expect(&pieces, extent(0, MAX_BLOCKS + 1), Origin::Profile), []);
        // One that was let go of on its way has no place any more.
        pieces.drop_run(7);
        assert_eq!(expect(&pieces, extent(16, 2), Origin::Profile), [(16, 2)]);
        pieces.arrive(extent(16, 1), Some(data(16, BLOCK)));
        assert!(pieces.take_within(extent(16, 1), BLOCK, |_| Duration::ZERO).is_none());
    }

    #[test]
    fn a_read_waits_for_a_piece_on_its_way_and_goes_on_if_it_does_not_come() {
        for arrives in [true, false] {
            let pieces = Pieces::default();
            assert_eq!(expect(&pieces, extent(0, 1), Origin::Profile).len(), 1);
            thread::scope(|scope| {
                let reader = scope.spawn(|| take(&pieces, extent(0, 1), BLOCK));
                thread::sleep(Duration::from_millis(5));
                pieces.arrive(extent(0, 1), arrives.then(|| data(0, BLOCK)));
                assert_eq!(reader.join().unwrap().is_some(), arrives);
            });
        }
    }
}
