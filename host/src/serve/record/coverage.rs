//! Which parts of an image were read, each counted once.

use std::collections::BTreeMap;

use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::Extent;
use lazyroot_proto::verity::BLOCK;

/// Blocks that were read, as runs that neither overlap nor touch: from the first one to behind the last one. A block is
/// numbered by its object's position (the upper 32 bits) and its place in the object, so a file read from one end to the
/// other takes one entry.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<u64, u64>);

impl Coverage {
    /// Counts a read; what lies outside of the image does not count.
    pub fn add(&mut self, extent: &Extent, index: &ObjectIndex) {
        let Some((_, size)) = index.get(extent.position) else { return };
        let object = u64::from(extent.position) << 32;
        let blocks = size.div_ceil(BLOCK as u64).min(u64::from(u32::MAX));
        let end = (u64::from(extent.block) + u64::from(extent.blocks)).min(blocks);
        if u64::from(extent.block) < end {
            self.insert(object + u64::from(extent.block), object + end);
        }
    }

    /// Counts what was read elsewhere of the same image.
    pub fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|(&start, &end)| self.insert(start, end));
    }

    fn insert(&mut self, mut start: u64, mut end: u64) {
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back()
            && other_end >= start
        {
            self.0.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.0.insert(start, end);
    }

    /// How many bytes that are.
    pub fn bytes(&self, index: &ObjectIndex) -> u64 {
        let bytes = |(&start, &end): (&u64, &u64)| {
            let position = (start >> 32) as u32;
            let (_, size) = index.get(position)?;
            Some(Extent { position, block: start as u32, blocks: (end - start) as u32 }.bytes(size)?.1)
        };
        self.0.iter().filter_map(bytes).sum()
    }

    /// Of how many objects.
    pub fn objects(&self) -> u64 {
        let mut last = None;
        self.0.keys().filter(|&key| last.replace(key >> 32) != Some(key >> 32)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use lazyroot_proto::{Algorithm, verity};
    use proptest::prelude::*;

    use super::*;

    const SIZES: [u64; 4] = [1, 4096, 10 * 4096 + 5, 3 * 4096];

    fn index() -> ObjectIndex {
        let entry = |(number, size): (usize, &u64)| (verity::digest(Algorithm::Sha256, &number.to_le_bytes()), *size);
        ObjectIndex::new(Algorithm::Sha256, SIZES.iter().enumerate().map(entry).collect()).unwrap()
    }

    #[test]
    fn a_whole_object_counts_once_however_it_is_read() {
        let mut coverage = Coverage::default();
        for block in [3, 0, 10, 2, 1, 4, 9, 8, 5, 6, 7, 0] {
            coverage.add(&Extent { position: 2, block, blocks: 1 }, &index());
        }
        assert_eq!((coverage.bytes(&index()), coverage.objects(), coverage.0.len()), (SIZES[2], 1, 1));
    }

    proptest! {
        #[test]
        fn it_counts_what_a_set_of_blocks_counts(
            reads in proptest::collection::vec((0u32..5, 0u32..14, 1u32..9), 0..40),
            elsewhere in proptest::collection::vec((0u32..5, 0u32..14, 1u32..9), 0..9),
        ) {
            let index = index();
            let (mut coverage, mut other, mut blocks) = (Coverage::default(), Coverage::default(), HashSet::new());
            for (place, reads) in [(&mut coverage, &reads), (&mut other, &elsewhere)] {
                for &(position, block, count) in reads {
                    place.add(&Extent { position, block, blocks: count }, &index);
                    blocks.extend((block..block + count).map(|block| (position, block)));
                }
            }
            coverage.extend(&other);
            let bytes = |&(position, block): &(u32, u32)| {
                Some((Extent { position, block, blocks: 1 }).bytes(*SIZES.get(position as usize)?)?.1)
            };
            prop_assert_eq!(coverage.bytes(&index), blocks.iter().filter_map(bytes).sum::<u64>());
            let objects: HashSet<u32> = blocks.iter().filter(|block| bytes(block).is_some()).map(|block| block.0).collect();
            prop_assert_eq!(coverage.objects(), objects.len() as u64);
        }
    }
}
