//! SHA-256 of eight blocks at a time, each in a lane of 256-bit registers, for x86 processors with AVX2 and no SHA
//! instructions.
//!
//! A hash is a chain of steps, each of which waits for the one before; the blocks of a Merkle tree are independent. So eight
//! of them take the time of one: three times the speed of assembly that hashes them one after the other. That is what
//! emulated guests have, whose SHA instructions are slower than what they replace, and Intel servers of before 2021.
//! The algorithm is that of FIPS 180-4, 6.2; its names are kept.
#![allow(unsafe_code)]

use crate::verity::BLOCK;

/// Blocks at a time: 32-bit words in a register.
const LANES: usize = 8;

/// Least blocks that are worth it: all lanes are computed, filled or not.
const WORTH_IT: usize = 3;

/// Appends the SHA-256 of each 4 KiB block at the start of `data` to `hashes`, as far as this processor is faster so. Returns
/// how many bytes it has taken: whole blocks, or none.
pub fn hash_blocks(data: &[u8], hashes: &mut Vec<u8>) -> usize {
    let blocks = data.len() / BLOCK;
    let taken = if blocks % LANES < WORTH_IT { blocks / LANES * LANES } else { blocks };
    #[cfg(target_arch = "x86_64")]
    if taken > 0 && is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("sha") {
        for group in data[..taken * BLOCK].chunks(LANES * BLOCK) {
            // SAFETY: AVX2 is there.
            unsafe { avx2::hash_group(group, hashes) };
        }
        return taken * BLOCK;
    }
    let _ = (taken, hashes);
    0
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, LANES};

    /// Bytes that the compression function takes at a time.
    const CHUNK: usize = 64;

    /// FIPS 180-4, 5.3.3.
    const INITIAL: [u32; 8] =
        [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

    /// FIPS 180-4, 4.2.2.
    const ROUND: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98,
        0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
        0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8,
        0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
        0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819,
        0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
        0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
        0xc67178f2,
    ];

    /// Hashes one to [`LANES`] whole blocks.
    #[target_feature(enable = "avx2")]
    pub fn hash_group(group: &[u8], hashes: &mut Vec<u8>) {
        let mut state = INITIAL.map(|word| _mm256_set1_epi32(word as i32));
        let mut words = [[0; LANES]; 16];
        for offset in (0..BLOCK).step_by(CHUNK) {
            for (lane, block) in group.chunks_exact(BLOCK).enumerate() {
                let (chunk, _) = block[offset..offset + CHUNK].as_chunks();
                for (words, bytes) in words.iter_mut().zip(chunk) {
                    words[lane] = u32::from_be_bytes(*bytes);
                }
            }
            compress(&mut state, words.map(|words| load(&words)));
        }
        // The padding of a message of BLOCK bytes: a one, zeros, and its length in bits.
        let mut padding = [_mm256_setzero_si256(); 16];
        padding[0] = _mm256_set1_epi32(i32::MIN);
        padding[15] = _mm256_set1_epi32(8 * BLOCK as i32);
        compress(&mut state, padding);
        let state = state.map(|register| store(register));
        for lane in 0..group.len() / BLOCK {
            state.iter().for_each(|words| hashes.extend_from_slice(&words[lane].to_be_bytes()));
        }
    }

    #[target_feature(enable = "avx2")]
    fn load(words: &[u32; LANES]) -> __m256i {
        // SAFETY: eight words of four bytes are as long as what is read, which needs no alignment.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(register: __m256i) -> [u32; LANES] {
        let mut words = [0; LANES];
        // SAFETY: as long as what is written, which needs no alignment.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), register) };
        words
    }

    #[target_feature(enable = "avx2")]
    fn compress(state: &mut [__m256i; 8], mut w: [__m256i; 16]) {
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for t in 0..ROUND.len() {
            if t >= 16 {
                let (early, late) = (w[(t + 1) % 16], w[(t + 14) % 16]);
                let sigma0 = xor3(rotate::<7, 25>(early), rotate::<18, 14>(early), _mm256_srli_epi32::<3>(early));
                let sigma1 = xor3(rotate::<17, 15>(late), rotate::<19, 13>(late), _mm256_srli_epi32::<10>(late));
                w[t % 16] = add(add(w[t % 16], sigma0), add(w[(t + 9) % 16], sigma1));
            }
            let sum1 = xor3(rotate::<6, 26>(e), rotate::<11, 21>(e), rotate::<25, 7>(e));
            let choice = _mm256_xor_si256(g, _mm256_and_si256(e, _mm256_xor_si256(f, g)));
            let k = _mm256_set1_epi32(ROUND[t] as i32);
            let t1 = add(add(h, sum1), add(choice, add(k, w[t % 16])));
            let sum0 = xor3(rotate::<2, 30>(a), rotate::<13, 19>(a), rotate::<22, 10>(a));
            let majority = _mm256_xor_si256(_mm256_and_si256(a, b), _mm256_and_si256(c, _mm256_xor_si256(a, b)));
            (h, g, f, e) = (g, f, e, add(d, t1));
            (d, c, b, a) = (c, b, a, add(t1, add(sum0, majority)));
        }
        for (state, word) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *state = add(*state, word);
        }
    }

    #[target_feature(enable = "avx2")]
    fn add(x: __m256i, y: __m256i) -> __m256i {
        _mm256_add_epi32(x, y)
    }

    #[target_feature(enable = "avx2")]
    fn xor3(x: __m256i, y: __m256i, z: __m256i) -> __m256i {
        _mm256_xor_si256(_mm256_xor_si256(x, y), z)
    }

    /// Rotates each word right; `LEFT` is the rest of its 32 bits.
    #[target_feature(enable = "avx2")]
    fn rotate<const RIGHT: i32, const LEFT: i32>(x: __m256i) -> __m256i {
        _mm256_or_si256(_mm256_srli_epi32::<RIGHT>(x), _mm256_slli_epi32::<LEFT>(x))
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::digest::{SHA256, digest};

    proptest! {
        #[test]
        fn every_lane_has_the_hash_of_its_block(blocks in 1usize..=LANES, seed in any::<u32>()) {
            prop_assert!(is_x86_feature_detected!("avx2"), "this test needs a processor with AVX2");
            let byte = |at: usize| ((at as u32 ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8;
            let data: Vec<u8> = (0..blocks * BLOCK).map(byte).collect();
            let mut hashes = Vec::new();
            // SAFETY: AVX2 is there.
            unsafe { avx2::hash_group(&data, &mut hashes) };
            let expected: Vec<u8> = data.chunks(BLOCK).flat_map(|block| digest(&SHA256, block).as_ref().to_vec()).collect();
            prop_assert_eq!(hashes, expected);
        }
    }
}
