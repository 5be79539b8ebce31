//! Verified pieces of large objects that the boot profile brought, until a program reads them.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use lazyroot_proto::reads::Extent;
use lazyroot_proto::verity::BLOCK;

/// Blocks of a piece at most: one bit each says whether it was read.
pub const MAX_BLOCKS: u32 = u64::BITS;

/// How long a read waits for a piece that is on its way before it asks for itself: as long as half a heartbeat, after
/// which something is wrong.
const PATIENCE: Duration = Duration::from_secs(2);

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
    /// The bytes.
    pub data: Vec<u8>,
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

    /// All the bytes of `extent`, `len` of them, if pieces hold them or soon will.
    pub fn take(&self, extent: Extent, len: usize) -> Option<Found> {
        let deadline = Instant::now() + PATIENCE;
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
    let mut found = Found { data: Vec::with_capacity(len), fresh: 0, freed: 0 };
    for key in keys {
        let piece = pieces.get_mut(key).expect("the key was found under the same lock");
        let data = piece.data.clone().expect("all of them have arrived");
        let first = (extent.block as usize + found.data.len() / BLOCK) - key.1 as usize;
        let start = first * BLOCK;
        let end = data.len().min(start + len - found.data.len());
        found.data.extend_from_slice(&data[start.min(end)..end]);
        let last = end.div_ceil(BLOCK);
        let bits = (first..last).fold(0u64, |bits, block| bits | 1 << block);
        found.fresh += u64::from((bits & !piece.read).count_ones()) * BLOCK as u64;
        piece.read |= bits;
        if piece.read.count_ones() as usize >= data.len().div_ceil(BLOCK) {
            found.freed += data.len();
            pieces.remove(key);
        }
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
        let found = pieces.take(extent(6, 3), 3 * BLOCK).unwrap();
        assert_eq!((found.data, found.fresh, found.freed), (data(6, 3 * BLOCK), 3 * BLOCK as u64, 0));
        let end = pieces.take(extent(9, 2), BLOCK + 100).unwrap();
        assert_eq!((end.data, end.freed), (data(9, BLOCK + 100), 2 * BLOCK + 100));
        for (block, blocks) in [(3, 2), (10, 1), (7, 2)] {
            assert!(pieces.take(extent(block, blocks), blocks as usize * BLOCK).is_none(), "{blocks} at {block}");
        }
        let rest = pieces.take(extent(4, 4), 4 * BLOCK).unwrap();
        assert_eq!((rest.fresh, rest.freed), (2 * BLOCK as u64, 4 * BLOCK));
        assert_eq!(pieces.drop_all(), 0);
    }

    #[test]
    fn a_read_waits_for_a_piece_on_its_way_and_goes_on_if_it_does_not_come() {
        for arrives in [true, false] {
            let pieces = Pieces::default();
            assert!(pieces.expect(extent(0, 1)) && !pieces.expect(extent(0, 1)));
            thread::scope(|scope| {
                let reader = scope.spawn(|| pieces.take(extent(0, 1), BLOCK));
                thread::sleep(Duration::from_millis(5));
                pieces.arrive(extent(0, 1), arrives.then(|| data(0, BLOCK)));
                assert_eq!(reader.join().unwrap().is_some(), arrives);
            });
        }
        assert!(!Pieces::default().expect(extent(0, MAX_BLOCKS + 1)));
    }
}
