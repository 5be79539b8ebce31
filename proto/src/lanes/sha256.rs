//! SHA-256 (FIPS 180-4, 6.2) of messages side by side, all of a length, whatever the registers. Its names are kept.
//!
//! All of it is inlined into functions that are compiled for a processor with the registers, and only those make it fast
//! (the way of the memchr crate).

/// Bytes that the compression function takes at a time: sixteen words.
pub const CHUNK: usize = 64;

/// The widest registers' words.
const MAX_LANES: usize = 16;

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

/// A register of 32-bit words, one a lane.
///
/// # Safety
/// Of all methods: the processor has such registers.
pub trait Vector: Copy {
    /// Every word is this one.
    unsafe fn splat(word: u32) -> Self;
    /// Words `0..16` of the chunks at byte `offset` of messages, each in the lane of its message. Lanes without one hold
    /// anything.
    unsafe fn words<const LEN: usize>(messages: &[&[u8; LEN]], offset: usize) -> [Self; 16];
    /// As many words as there are lanes, in order.
    unsafe fn store(self, words: &mut [u32; MAX_LANES]);
    /// Sums modulo 2^32.
    unsafe fn add(self, other: Self) -> Self;
    /// `self ^ y ^ z`
    unsafe fn xor3(self, y: Self, z: Self) -> Self;
    /// Ch: each bit is that of `y` where `self` has a one, else that of `z`.
    unsafe fn choice(self, y: Self, z: Self) -> Self;
    /// Maj: each bit is that of at least two of the three.
    unsafe fn majority(self, y: Self, z: Self) -> Self;
    /// SHR
    unsafe fn shift<const RIGHT: u32>(self) -> Self;
    /// ROTR
    unsafe fn rotate<const RIGHT: u32>(self) -> Self;
}

/// Appends the hashes of `group`, no more messages than a register has lanes, to `hashes`. `LEN` is a multiple of [`CHUNK`].
///
/// # Safety
/// The processor has such registers.
#[inline(always)]
pub unsafe fn hash_group<V: Vector, const LEN: usize>(group: &[&[u8; LEN]], hashes: &mut Vec<u8>) {
    const { assert!(LEN.is_multiple_of(CHUNK)) };
    // SAFETY: as the caller says.
    unsafe {
        let mut state = INITIAL.map(|word| V::splat(word));
        for offset in (0..=LEN).step_by(CHUNK) {
            let words = if offset < LEN { V::words(group, offset) } else { padding(LEN) };
            compress(&mut state, words);
        }
        let mut lanes = [[0; MAX_LANES]; INITIAL.len()];
        for (words, register) in lanes.iter_mut().zip(state) {
            register.store(words);
        }
        for lane in 0..group.len() {
            lanes.iter().for_each(|words| hashes.extend_from_slice(&words[lane].to_be_bytes()));
        }
    }
}

/// The padding of a message of `len` bytes, whole chunks: a one, zeros, and its length in bits.
#[inline(always)]
unsafe fn padding<V: Vector>(len: usize) -> [V; 16] {
    // SAFETY: as the caller says.
    unsafe {
        let mut words = [V::splat(0); 16];
        words[0] = V::splat(1 << 31);
        words[15] = V::splat(8 * len as u32);
        words
    }
}

#[inline(always)]
unsafe fn compress<V: Vector>(state: &mut [V; 8], mut w: [V; 16]) {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    // SAFETY: as the caller says.
    unsafe {
        for t in 0..ROUND.len() {
            if t >= 16 {
                let (early, late) = (w[(t + 1) % 16], w[(t + 14) % 16]);
                let sigma0 = early.rotate::<7>().xor3(early.rotate::<18>(), early.shift::<3>());
                let sigma1 = late.rotate::<17>().xor3(late.rotate::<19>(), late.shift::<10>());
                w[t % 16] = w[t % 16].add(sigma0).add(w[(t + 9) % 16].add(sigma1));
            }
            let sum1 = e.rotate::<6>().xor3(e.rotate::<11>(), e.rotate::<25>());
            let t1 = h.add(sum1).add(e.choice(f, g).add(V::splat(ROUND[t]).add(w[t % 16])));
            let sum0 = a.rotate::<2>().xor3(a.rotate::<13>(), a.rotate::<22>());
            let t2 = sum0.add(a.majority(b, c));
            (h, g, f, e) = (g, f, e, d.add(t1));
            (d, c, b, a) = (c, b, a, t1.add(t2));
        }
        for (state, word) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *state = state.add(word);
        }
    }
}
