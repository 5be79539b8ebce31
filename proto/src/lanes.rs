//! SHA-256 of many blocks at a time, each in a lane of vector registers, for x86 processors that are faster so.
//!
//! A hash is a chain of steps, each of which waits for the one before; the blocks of a Merkle tree are independent. So a
//! register of blocks takes the time of one. With AVX-512 that is sixteen of them, twice the speed of SHA instructions. With
//! AVX2 it is eight, three times the speed of assembly without SHA instructions: what emulated guests have, whose SHA
//! instructions are slower than what they replace, and servers of before 2021.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod sha256;

/// Appends the SHA-256 of each 4 KiB block at the start of `data` to `hashes`, as far as this processor is faster so. Returns
/// how many bytes it has taken: whole blocks, or none.
pub fn hash_blocks(data: &[u8], hashes: &mut Vec<u8>) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(vectors) = vectors::best() {
        return vectors.hash_blocks(data, hashes);
    }
    let _ = (data, hashes);
    0
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use super::{avx2, avx512};
    use crate::verity::BLOCK;

    /// Registers to hash with.
    pub struct Vectors {
        /// Blocks at a time: 32-bit words in a register.
        pub lanes: usize,
        /// Least blocks that are worth it: all lanes are computed, filled or not.
        worth_it: usize,
        /// Hashes one to `lanes` whole blocks. Safe where the processor has the registers, as it has all of [`there`].
        pub hash_group: unsafe fn(&[u8], &mut Vec<u8>),
    }

    /// What this processor has, the fastest first.
    pub fn there() -> impl Iterator<Item = Vectors> {
        // One block takes an eighth of the time of all lanes with SHA instructions, and a third without.
        let worth_it = if is_x86_feature_detected!("sha") { 9 } else { 3 };
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let avx512 = avx512.then_some(Vectors { lanes: 16, worth_it, hash_group: avx512::hash_group });
        let avx2 = is_x86_feature_detected!("avx2");
        let avx2 = avx2.then_some(Vectors { lanes: 8, worth_it, hash_group: avx2::hash_group });
        avx512.into_iter().chain(avx2)
    }

    /// What this processor hashes fastest with; `None` if that is no vectors.
    pub fn best() -> Option<Vectors> {
        there().next().filter(|vectors| vectors.worth_it <= vectors.lanes)
    }

    impl Vectors {
        pub fn hash_blocks(&self, data: &[u8], hashes: &mut Vec<u8>) -> usize {
            let blocks = data.len() / BLOCK;
            let rest = blocks % self.lanes;
            let taken = if rest < self.worth_it { blocks - rest } else { blocks } * BLOCK;
            for group in data[..taken].chunks(self.lanes * BLOCK) {
                // SAFETY: the processor has the registers.
                unsafe { (self.hash_group)(group, hashes) };
            }
            taken
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::vectors::there;
    use crate::verity::BLOCK;
    use proptest::prelude::*;
    use ring::digest::{SHA256, digest};

    proptest! {
        #[test]
        fn every_lane_has_the_hash_of_its_block(blocks in 1usize..=40, seed in any::<u32>()) {
            let byte = |at: usize| ((at as u32 ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8;
            let data: Vec<u8> = (0..blocks * BLOCK).map(byte).collect();
            let expected: Vec<u8> = data.chunks(BLOCK).flat_map(|block| digest(&SHA256, block).as_ref().to_vec()).collect();
            prop_assert!(there().count() > 0, "this test needs a processor with AVX2");
            for vectors in there() {
                let mut hashes = Vec::new();
                for group in data.chunks(vectors.lanes * BLOCK) {
                    // SAFETY: the processor has the registers.
                    unsafe { (vectors.hash_group)(group, &mut hashes) };
                }
                prop_assert_eq!(&hashes, &expected, "{} lanes", vectors.lanes);
                hashes.clear();
                let taken = vectors.hash_blocks(&data, &mut hashes);
                prop_assert_eq!(&hashes[..], &expected[..taken / BLOCK * 32]);
                prop_assert!(data.len() - taken < vectors.lanes * BLOCK);
            }
        }
    }
}
