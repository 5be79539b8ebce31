//! Registers of 256 bits.

use std::arch::x86_64::*;

use super::sha256::{self, CHUNK, Vector};

/// As [`sha256::hash_group`], of up to eight messages.
#[target_feature(enable = "avx2")]
pub fn hash_group<const LEN: usize>(group: &[&[u8; LEN]], hashes: &mut Vec<u8>) {
    // SAFETY: AVX2 is there.
    unsafe { sha256::hash_group::<__m256i, LEN>(group, hashes) }
}

impl Vector for __m256i {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn splat(word: u32) -> Self {
        _mm256_set1_epi32(word as i32)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn words<const LEN: usize>(messages: &[&[u8; LEN]], offset: usize) -> [Self; 16] {
        let mut words = [[0u32; 8]; 16];
        for (lane, message) in messages.iter().enumerate() {
            let (chunk, _) = message[offset..offset + CHUNK].as_chunks();
            for (words, bytes) in words.iter_mut().zip(chunk) {
                words[lane] = u32::from_be_bytes(*bytes);
            }
        }
        // SAFETY: eight words of four bytes are as long as what is read, which needs no alignment.
        words.map(|words| unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(self, words: &mut [u32; 16]) {
        // SAFETY: longer than what is written, which needs no alignment.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), self) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add(self, other: Self) -> Self {
        _mm256_add_epi32(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn xor3(self, y: Self, z: Self) -> Self {
        _mm256_xor_si256(_mm256_xor_si256(self, y), z)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn choice(self, y: Self, z: Self) -> Self {
        _mm256_xor_si256(z, _mm256_and_si256(self, _mm256_xor_si256(y, z)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn majority(self, y: Self, z: Self) -> Self {
        _mm256_xor_si256(_mm256_and_si256(self, y), _mm256_and_si256(z, _mm256_xor_si256(self, y)))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn shift<const RIGHT: u32>(self) -> Self {
        _mm256_srl_epi32(self, _mm_cvtsi32_si128(RIGHT as i32))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn rotate<const RIGHT: u32>(self) -> Self {
        let right = _mm256_srl_epi32(self, _mm_cvtsi32_si128(RIGHT as i32));
        _mm256_or_si256(right, _mm256_sll_epi32(self, _mm_cvtsi32_si128(32 - RIGHT as i32)))
    }
}
