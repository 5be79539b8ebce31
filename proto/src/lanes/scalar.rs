//! Registers of 32 bits: one message at a time, with nothing but integer instructions.

use super::sha256::{self, CHUNK, Vector};

/// Appends the hash of `message` to `hashes`.
pub fn hash<const LEN: usize>(message: &[u8; LEN], hashes: &mut Vec<u8>) {
    // SAFETY: every processor has such registers.
    unsafe { sha256::hash_group::<u32, LEN>(&[message], hashes) }
}

impl Vector for u32 {
    #[inline(always)]
    unsafe fn splat(word: u32) -> Self {
        word
    }

    #[inline(always)]
    unsafe fn words<const LEN: usize>(messages: &[&[u8; LEN]], offset: usize) -> [Self; 16] {
        let mut words = [0; 16];
        let (chunk, _) = messages[0][offset..offset + CHUNK].as_chunks();
        words.iter_mut().zip(chunk).for_each(|(word, bytes)| *word = u32::from_be_bytes(*bytes));
        words
    }

    #[inline(always)]
    unsafe fn store(self, words: &mut [u32; 16]) {
        words[0] = self;
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    #[inline(always)]
    unsafe fn xor3(self, y: Self, z: Self) -> Self {
        self ^ y ^ z
    }

    #[inline(always)]
    unsafe fn choice(self, y: Self, z: Self) -> Self {
        z ^ self & (y ^ z)
    }

    #[inline(always)]
    unsafe fn majority(self, y: Self, z: Self) -> Self {
        self & y ^ z & (self ^ y)
    }

    #[inline(always)]
    unsafe fn shift<const RIGHT: u32>(self) -> Self {
        self >> RIGHT
    }

    #[inline(always)]
    unsafe fn rotate<const RIGHT: u32>(self) -> Self {
        self.rotate_right(RIGHT)
    }
}
