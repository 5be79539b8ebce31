//! Registers of 512 bits.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::sha256::{self, CHUNK, Vector};

/// As [`sha256::hash_group`], of up to sixteen messages.
#[target_feature(enable = "avx512f,avx512bw")]
pub fn hash_group<const LEN: usize>(group: &[&[u8; LEN]], hashes: &mut Vec<u8>) {
    // SAFETY: AVX-512 F and BW are there.
    unsafe { sha256::hash_group::<__m512i, LEN>(group, hashes) }
}

/// What bit `4 * x + 2 * y + z` of a table of VPTERNLOG says about bits x, y and z.
const XOR3: i32 = 0x96;
const CHOICE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

impl Vector for __m512i {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn splat(word: u32) -> Self {
        _mm512_set1_epi32(word as i32)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn words<const LEN: usize>(messages: &[&[u8; LEN]], offset: usize) -> [Self; 16] {
        let mut rows = [_mm512_setzero_si512(); 16];
        // Within each 128 bits, the bytes of each word the other way round.
        let big_endian = _mm512_set4_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203);
        for (row, message) in rows.iter_mut().zip(messages) {
            let chunk = &message[offset..offset + CHUNK];
            // SAFETY: as long as what is read, which needs no alignment.
            *row = _mm512_shuffle_epi8(unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) }, big_endian);
        }
        transpose(rows)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn store(self, words: &mut [u32; 16]) {
        // SAFETY: as long as what is written, which needs no alignment.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), self) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn add(self, other: Self) -> Self {
        _mm512_add_epi32(self, other)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn xor3(self, y: Self, z: Self) -> Self {
        _mm512_ternarylogic_epi32::<XOR3>(self, y, z)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn choice(self, y: Self, z: Self) -> Self {
        _mm512_ternarylogic_epi32::<CHOICE>(self, y, z)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn majority(self, y: Self, z: Self) -> Self {
        _mm512_ternarylogic_epi32::<MAJORITY>(self, y, z)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn shift<const RIGHT: u32>(self) -> Self {
        _mm512_srli_epi32::<RIGHT>(self)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn rotate<const RIGHT: u32>(self) -> Self {
        _mm512_rorv_epi32(self, _mm512_set1_epi32(RIGHT as i32))
    }
}

/// Sixteen rows of sixteen words, as columns: pairs of words, of pairs, of fours, and of eights change places.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    /// The even 128-bit parts of two registers, and the odd ones.
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xdd;
    let pairs: [__m512i; 16] = from_fn(|at| match at % 2 {
        0 => _mm512_unpacklo_epi32(rows[at], rows[at + 1]),
        _ => _mm512_unpackhi_epi32(rows[at - 1], rows[at]),
    });
    // Four rows' words, in each 128 bits those of another column.
    let fours: [__m512i; 16] = from_fn(|at| {
        let row = at / 4 * 4 + at % 4 / 2;
        match at % 2 {
            0 => _mm512_unpacklo_epi64(pairs[row], pairs[row + 2]),
            _ => _mm512_unpackhi_epi64(pairs[row], pairs[row + 2]),
        }
    });
    let eights: [__m512i; 16] = from_fn(|at| {
        let row = at / 8 * 8 + at % 4;
        match at % 8 / 4 {
            0 => _mm512_shuffle_i32x4::<EVEN>(fours[row], fours[row + 4]),
            _ => _mm512_shuffle_i32x4::<ODD>(fours[row], fours[row + 4]),
        }
    });
    from_fn(|at| match at / 8 {
        0 => _mm512_shuffle_i32x4::<EVEN>(eights[at], eights[at + 8]),
        _ => _mm512_shuffle_i32x4::<ODD>(eights[at - 8], eights[at]),
    })
}
