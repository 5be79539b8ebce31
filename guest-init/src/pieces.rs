//! Verified pieces of large objects that came ahead of need, until a program reads them.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lazyroot_proto::reads::Extent;
use lazyroot_proto::verity::BLOCK;

/// Blocks of a piece at most: one bit each says whether it was read.
pub const MAX_BLOCKS: u32 = u64::BITS;

/// See the module.
#[derive(Default)]
pub struct Pieces {
    /// By position and first block. Pieces may overlap.
    pieces: Mutex<BTreeMap<(u32, u32), Piece>>,
    arrived: Condvar,
}

struct Piece {
    blocks: u32,
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
    /// How many of them nobody had read before.
    pub fresh: u64,
    /// Bytes of memory that were freed with it.
    pub freed: usize,
}

impl Pieces {
    /// A piece is on its way. `false` if it is expected already, or longer than a piece may be.
    pub fn expect(&self, extent: Extent) -> bool {
        let mut pieces = self.lock();
        let key = (extent.position, extent.block);
        if extent.blocks > MAX_BLOCKS || pieces.contains_key(&key) {
            return false;
        }
        pieces.insert(key, Piece { blocks: extent.blocks, data: None, read: 0 });
        true
    }

    /// Whether pieces hold all of `extent`, or will.
    pub fn has(&self, extent: Extent) -> bool {
        covering(&self.lock(), extent).is_some()
    }

    /// The piece has come, verified; or will not.
    pub fn arrive(&self, extent: Extent, data: Option<Vec<u8>>) {
        let mut pieces = self.lock();
        let key = (extent.position, extent.block);
        match (pieces.get_mut(&key), data) {
            (Some(piece), Some(data)) => piece.data = Some(Arc::new(data)),
            (Some(_), None) => {
                pieces.remove(&key);
            }
            (None, _) => (),
        }
        self.arrived.notify_all();
    }

    /// All the bytes of `extent`, `len` of them, if pieces hold them or will within `patience`.
    pub fn take(&self, extent: Extent, len: usize, patience: Duration) -> Option<Found> {
        let deadline = Instant::now() + patience;
        let mut pieces = self.lock();
        loop {
            let covering = covering(&pieces, extent)?;
            if covering.iter().all(|key| pieces[key].data.is_some()) {
                return Some(collect(&mut pieces, &covering, extent, len));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            pieces = self.arrived.wait_timeout(pieces, left).expect("no panic under the lock").0;
        }
    }

    /// Lets go of the object at `position`.
    pub fn drop_object(&self, position: u32) {
        let mut pieces = self.lock();
        let mut behind = pieces.split_off(&(position, 0));
        if let Some(next) = position.checked_add(1) {
            pieces.append(&mut behind.split_off(&(next, 0)));
        }
        drop(pieces);
        self.arrived.notify_all();
    }

    /// Lets go of everything; returns how much memory that was, in bytes.
    pub fn drop_all(&self) -> usize {
        let pieces = std::mem::take(&mut *self.lock());
        self.arrived.notify_all();
        pieces.values().filter_map(|piece| piece.data.as_ref()).map(|data| data.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u32, u32), Piece>> {
        self.pieces.lock().expect("no panic under the lock")
    }
}

/// Pieces that together have every block of `extent`, in order.
fn covering(pieces: &BTreeMap<(u32, u32), Piece>, extent: Extent) -> Option<Vec<(u32, u32)>> {
    let end = extent.block.checked_add(extent.blocks)?;
    let mut found = Vec::new();
    let mut covered = extent.block;
    while covered < end {
        // The last piece that begins at or before the first block that is missing.
        let (key, piece) = pieces.range((extent.position, 0)..=(extent.position, covered)).next_back()?;
        let piece_end = key.1 + piece.blocks;
        if piece_end <= covered {
            return None;
        }
        found.push(*key);
        covered = piece_end;
    }
    Some(found)
}

fn collect(pieces: &mut BTreeMap<(u32, u32), Piece>, keys: &[(u32, u32)], extent: Extent, len: usize) -> Found {
    let mut found = Found { data: Arc::default(), start: 0, fresh: 0, freed: 0 };
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
        found.fresh += u64::from((bits & !piece.read).count_ones()) * BLOCK as u64;
        piece.read |= bits;
        if piece.read.count_ones() as usize >= data.len().div_ceil(BLOCK) {
            found.freed += data.len();
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
        pieces.take(extent, len, Duration::from_secs(2))
    }

    fn put(pieces: &Pieces, block: u32, len: usize) {
        let extent = extent(block, len.div_ceil(BLOCK) as u32);
        assert!(pieces.expect(extent));
        pieces.arrive(extent, Some(data(block as usize, len)));
    }

    #[test]
    fn a_read_is_put_together_from_pieces_or_not_at_all() {
        let pieces = Pieces::default();
        put(&pieces, 4, 4 * BLOCK);
        put(&pieces, 8, 2 * BLOCK + 100);
        let found = take(&pieces, extent(6, 3), 3 * BLOCK).unwrap();
        assert_eq!((&*found.data, found.start), (&data(6, 3 * BLOCK), 0));
        assert_eq!((found.fresh, found.freed), (3 * BLOCK as u64, 0));
        let end = take(&pieces, extent(9, 2), BLOCK + 100).unwrap();
        assert_eq!((&end.data[end.start..], end.freed), (&*data(9, BLOCK + 100), 2 * BLOCK + 100));
        for (block, blocks) in [(3, 2), (10, 1), (7, 2)] {
            assert!(take(&pieces, extent(block, blocks), blocks as usize * BLOCK).is_none(), "{blocks} at {block}");
        }
        let rest = take(&pieces, extent(4, 4), 4 * BLOCK).unwrap();
        assert_eq!((rest.fresh, rest.freed), (2 * BLOCK as u64, 4 * BLOCK));
        assert_eq!(pieces.drop_all(), 0);
        put(&pieces, 0, BLOCK);
        pieces.drop_object(6);
        pieces.drop_object(8);
        assert!(take(&pieces, extent(0, 1), BLOCK).is_some_and(|found| found.data.len() == BLOCK));
        put(&pieces, 0, BLOCK);
        pieces.drop_object(7);
        assert!(take(&pieces, extent(0, 1), BLOCK).is_none());
    }

    #[test]
    fn a_read_waits_for_a_piece_on_its_way_and_goes_on_if_it_does_not_come() {
        for arrives in [true, false] {
            let pieces = Pieces::default();
            assert!(pieces.expect(extent(0, 1)) && !pieces.expect(extent(0, 1)));
            assert!(pieces.has(extent(0, 1)) && !pieces.has(extent(0, 2)));
            thread::scope(|scope| {
                let reader = scope.spawn(|| take(&pieces, extent(0, 1), BLOCK));
                thread::sleep(Duration::from_millis(5));
                pieces.arrive(extent(0, 1), arrives.then(|| data(0, BLOCK)));
                assert_eq!(reader.join().unwrap().is_some(), arrives);
            });
        }
        assert!(!Pieces::default().expect(extent(0, MAX_BLOCKS + 1)));
    }
}
