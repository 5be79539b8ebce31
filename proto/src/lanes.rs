//! SHA-256 of many messages at a time, each in a lane of vector registers, for x86 processors that are faster so.
//!
//! A hash is a chain of steps, each of which waits for the one before; the blocks of Merkle trees are independent. So a
//! register of blocks takes the time of one. With AVX-512 that is sixteen of them, twice the speed of SHA instructions. With
//! AVX2 it is eight, three times the speed of assembly without SHA instructions: what emulated guests have, whose SHA
//! instructions are slower than what they replace, and servers of before 2021.
//!
//! What is left, too little for vectors, is for ring's assembly; but not in an emulated guest. There QEMU (10.0) takes five
//! times as long for ring's mix of vector and integer instructions, or not, by where in memory the code happens to lie:
//! `tar` of 2,700 files took 3.9 s or 7.5 s. So there integer instructions hash it, which take as long as ring at its best.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod scalar;
#[cfg(target_arch = "x86_64")]
mod sha256;

/// Appends the SHA-256 of each of the first `messages`, of `LEN` bytes each, to `hashes`, as far as this processor is faster
/// so. Returns how many it has taken. `LEN` is a multiple of 64.
pub fn hash<const LEN: usize>(messages: &[&[u8; LEN]], hashes: &mut Vec<u8>) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(vectors) = vectors::best() {
        return vectors.hash(messages, hashes);
    }
    let _ = (messages, hashes);
    0
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use std::arch::x86_64::{__cpuid, CpuidResult};
    use std::sync::LazyLock;

    use super::{avx2, avx512, scalar};

    /// Registers to hash messages of `LEN` bytes with.
    pub struct Vectors<const LEN: usize> {
        /// Messages at a time: 32-bit words in a register.
        pub lanes: usize,
        /// Least messages that are worth it: all lanes are computed, filled or not.
        worth_it: usize,
        /// Hashes one to `lanes` messages. Safe where the processor has the registers, as it has all of [`there`].
        pub hash_group: unsafe fn(&[&[u8; LEN]], &mut Vec<u8>),
        /// Whether integer instructions hash what is not worth it.
        pub scalar: bool,
    }

    /// Whether this processor is QEMU's emulation of one, and not just virtual: hypervisors sign leaf 0x40000000 of CPUID, if
    /// bit 31 of leaf 1's ECX says that there is one.
    static EMULATED: LazyLock<bool> = LazyLock::new(|| {
        #[allow(unused_unsafe, reason = "newer Rust knows that it is safe")]
        // SAFETY: every x86-64 processor has the instruction.
        let cpuid = |leaf| unsafe { __cpuid(leaf) };
        let signature = |leaf: CpuidResult| [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
        cpuid(1).ecx >> 31 == 1 && signature(cpuid(0x4000_0000)).as_flattened() == b"TCGTCGTCGTCG"
    });

    /// What this processor has, the fastest first.
    pub fn there<const LEN: usize>() -> impl Iterator<Item = Vectors<LEN>> {
        // One message takes an eighth of the time of all lanes with SHA instructions, and a third without.
        let worth_it = if is_x86_feature_detected!("sha") { 9 } else { 3 };
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let scalar = *EMULATED;
        let avx512 = avx512.then_some(Vectors { lanes: 16, worth_it, hash_group: avx512::hash_group, scalar });
        let avx2 = is_x86_feature_detected!("avx2");
        let avx2 = avx2.then_some(Vectors { lanes: 8, worth_it, hash_group: avx2::hash_group, scalar });
        avx512.into_iter().chain(avx2)
    }

    /// What this processor hashes fastest with; `None` if that is no vectors.
    pub fn best<const LEN: usize>() -> Option<Vectors<LEN>> {
        there().next().filter(|vectors| vectors.worth_it <= vectors.lanes)
    }

    impl<const LEN: usize> Vectors<LEN> {
        pub fn hash(&self, messages: &[&[u8; LEN]], hashes: &mut Vec<u8>) -> usize {
            let rest = messages.len() % self.lanes;
            let taken = if rest < self.worth_it { messages.len() - rest } else { messages.len() };
            for group in messages[..taken].chunks(self.lanes) {
                // SAFETY: the processor has the registers.
                unsafe { (self.hash_group)(group, hashes) };
            }
            if !self.scalar {
                return taken;
            }
            messages[taken..].iter().for_each(|message| scalar::hash(message, hashes));
            messages.len()
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::vectors::there;
    use crate::verity::{BLOCK, DESCRIPTOR};
    use proptest::prelude::*;
    use ring::digest::{SHA256, digest};

    proptest! {
        #[test]
        fn every_lane_has_the_hash_of_its_message(messages in 1usize..=40, seed in any::<u32>()) {
            every_lane_is_right::<BLOCK>(messages, seed)?;
            every_lane_is_right::<DESCRIPTOR>(messages, seed)?;
        }
    }

    fn every_lane_is_right<const LEN: usize>(messages: usize, seed: u32) -> Result<(), TestCaseError> {
        let byte = |at: usize| ((at as u32 ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8;
        let data: Vec<u8> = (0..messages * LEN).map(byte).collect();
        let messages: Vec<&[u8; LEN]> = data.as_chunks().0.iter().collect();
        let hash_alone = |message: &&[u8; LEN]| digest(&SHA256, *message).as_ref().to_vec();
        let expected: Vec<u8> = messages.iter().flat_map(hash_alone).collect();
        prop_assert!(there::<LEN>().count() > 0, "this test needs a processor with AVX2");
        for mut vectors in there::<LEN>() {
            let mut hashes = Vec::new();
            for group in messages.chunks(vectors.lanes) {
                // SAFETY: the processor has the registers.
                unsafe { (vectors.hash_group)(group, &mut hashes) };
            }
            prop_assert_eq!(&hashes, &expected, "{} lanes", vectors.lanes);
            hashes.clear();
            vectors.scalar = false;
            let taken = vectors.hash(&messages, &mut hashes);
            prop_assert_eq!(&hashes[..], &expected[..taken * 32]);
            prop_assert!(messages.len() - taken < vectors.lanes);
            hashes.clear();
            vectors.scalar = true;
            let all = vectors.hash(&messages, &mut hashes);
            prop_assert_eq!((all, &hashes), (messages.len(), &expected));
        }
        Ok(())
    }
}
