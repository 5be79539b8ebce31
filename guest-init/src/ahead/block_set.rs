//! A set of blocks of large objects: those that the kernel has, or has asked for. What is fetched ahead leaves them out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use lazyroot_proto::reads::Extent;

/// See the module.
pub struct BlockSet {
    /// A bit for each block, by position; `None` once the set is closed.
    blocks: Mutex<Option<HashMap<u32, Vec<u64>>>>,
}

impl Default for BlockSet {
    fn default() -> Self {
        Self { blocks: Mutex::new(Some(HashMap::new())) }
    }
}

impl BlockSet {
    /// Adds the blocks of `extent`, which lies inside of its object.
    pub fn insert(&self, extent: Extent) {
        if let Some(blocks) = &mut *self.lock() {
            let bits = blocks.entry(extent.position).or_default();
            for (word, mask) in words(extent) {
                if bits.len() <= word {
                    bits.resize(word + 1, 0);
                }
                bits[word] |= mask;
            }
        }
    }

    /// Whether this block of the object at `position` is in the set.
    pub fn contains(&self, position: u32, block: u32) -> bool {
        let blocks = self.lock();
        let Some(bits) = blocks.as_ref().and_then(|blocks| blocks.get(&position)) else { return false };
        bits.get((block / u64::BITS) as usize).is_some_and(|bits| bits >> (block % u64::BITS) & 1 == 1)
    }

    /// Forgets all blocks, and ignores those that are added later.
    pub fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u32, Vec<u64>>>> {
        self.blocks.lock().expect("no panic under the lock")
    }
}

/// Where the bits of an extent's blocks are: a word, and a mask in it.
fn words(extent: Extent) -> impl Iterator<Item = (usize, u64)> {
    let blocks = u64::from(extent.block)..u64::from(extent.block) + u64::from(extent.blocks);
    let bits = u64::from(u64::BITS);
    (blocks.start / bits..blocks.end.div_ceil(bits)).map(move |word| {
        let (first, end) = (blocks.start.max(word * bits), blocks.end.min((word + 1) * bits));
        (word as usize, u64::MAX >> (bits - (end - first)) << (first % bits))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_were_inserted_are_known_and_no_others() {
        let set = BlockSet::default();
        let extent = |block, blocks| Extent { position: 7, block, blocks };
        assert!(!set.contains(7, 0));
        set.insert(extent(60, 8));
        set.insert(extent(68, 190));
        assert!((0..300).all(|block| set.contains(7, block) == (60..258).contains(&block)));
        assert!(!set.contains(8, 60));
        set.close();
        set.insert(extent(0, 1));
        assert!(!set.contains(7, 0) && !set.contains(7, 60));
    }
}
