//! fs-verity digests and Merkle trees: 4 KiB blocks, no salt, SHA-256 or SHA-512, as composefs uses them.
//!
//! The format is the kernel's (`Documentation/filesystems/fsverity.rst`). An object's digest is the hash of
//! a 256-byte descriptor that holds its size and the root of a Merkle tree over its 4 KiB blocks. *Leaves*
//! here are the concatenated hashes of those blocks (the tree's lowest level): they are all that is needed
//! to check any block, and the levels above follow from them.

use std::borrow::Cow;

use ring::digest::{SHA256, SHA512};

use crate::{Algorithm, ObjectId, lanes};

/// The Merkle tree's block size in bytes; the last block of an object is hashed zero-padded to it.
pub const BLOCK: usize = 4096;

/// The size in bytes of the descriptor whose hash an object's digest is.
pub const DESCRIPTOR: usize = 256;

/// The hash of `data` under `algorithm`, without fs-verity's structure around it.
fn hash(algorithm: Algorithm, data: &[u8]) -> ring::digest::Digest {
    let algorithm = match algorithm {
        Algorithm::Sha256 => &SHA256,
        Algorithm::Sha512 => &SHA512,
    };
    ring::digest::digest(algorithm, data)
}

/// The hashes of `messages`, one behind the other.
fn hash_each<const LEN: usize>(algorithm: Algorithm, messages: &[&[u8; LEN]]) -> Vec<u8> {
    let mut hashes = Vec::with_capacity(messages.len() * algorithm.digest_len());
    let taken = if algorithm == Algorithm::Sha256 { lanes::hash(messages, &mut hashes) } else { 0 };
    messages[taken..].iter().for_each(|message| hashes.extend_from_slice(hash(algorithm, *message).as_ref()));
    hashes
}

/// The hash of every 4 KiB block of each of `all`, one behind the other; a last partial block counts as zero-padded.
fn hash_blocks(algorithm: Algorithm, all: &[&[u8]]) -> Vec<u8> {
    let pad = |rest: &[u8]| {
        let mut padded = [0; BLOCK];
        padded[..rest.len()].copy_from_slice(rest);
        (!rest.is_empty()).then_some(padded)
    };
    let split: Vec<_> = all.iter().map(|data| data.as_chunks()).map(|(whole, rest)| (whole, pad(rest))).collect();
    let blocks: Vec<_> = split.iter().flat_map(|(whole, last)| whole.iter().chain(last)).collect();
    hash_each(algorithm, &blocks)
}

/// The leaves of `data`: one digest per 4 KiB block, in order. Empty for no data.
pub fn leaves(algorithm: Algorithm, data: &[u8]) -> Vec<u8> {
    hash_blocks(algorithm, &[data])
}

/// As [`leaves`], of each of `all`.
fn leaves_of_each(algorithm: Algorithm, all: &[&[u8]]) -> Vec<Vec<u8>> {
    let hashes = hash_blocks(algorithm, all);
    let mut hashes = &hashes[..];
    let take = |data: &&[u8]| {
        let (own, others) = hashes.split_at(leaves_len(algorithm, data.len() as u64) as usize);
        hashes = others;
        own.to_vec()
    };
    all.iter().map(take).collect()
}

/// How many bytes the leaves of an object of `size` bytes take.
pub fn leaves_len(algorithm: Algorithm, size: u64) -> u64 {
    size.div_ceil(BLOCK as u64) * algorithm.digest_len() as u64
}

/// How many bytes a level of an object's tree takes: level 0 is the leaves, each level above has a hash for every 4 KiB
/// block of the one below, and the last has one. 0 for a level that is not there.
pub fn level_len(algorithm: Algorithm, size: u64, level: u8) -> u64 {
    let digest_len = algorithm.digest_len() as u64;
    (0..level).fold(leaves_len(algorithm, size), |len, _| match len > digest_len {
        true => len.div_ceil(BLOCK as u64) * digest_len,
        false => 0,
    })
}

/// The level above `nodes`, all of a level of a tree: the hash of every 4 KiB block of them.
pub fn level_above(algorithm: Algorithm, nodes: &[u8]) -> Vec<u8> {
    leaves(algorithm, nodes)
}

/// The fs-verity digest of an object of `size` bytes with these `leaves`; `None` if their number does not fit the size.
pub fn digest_of_leaves(algorithm: Algorithm, leaves: &[u8], size: u64) -> Option<ObjectId> {
    digest_of_level(algorithm, leaves, 0, size)
}

/// The fs-verity digest of an object of `size` bytes of whose tree `nodes` is all of this level; `None` if their number
/// does not fit.
pub fn digest_of_level(algorithm: Algorithm, nodes: &[u8], level: u8, size: u64) -> Option<ObjectId> {
    if nodes.len() as u64 != level_len(algorithm, size, level) || nodes.is_empty() && size > 0 {
        return None;
    }
    digests_of_levels(algorithm, vec![nodes.into()], &[size]).pop()
}

/// The fs-verity digests of objects of these `sizes` of whose trees `levels` are all of one level each.
fn digests_of_levels(algorithm: Algorithm, mut levels: Vec<Cow<'_, [u8]>>, sizes: &[u64]) -> Vec<ObjectId> {
    let digest_len = algorithm.digest_len();
    // Level upon level, until of each one digest is left.
    loop {
        let tall: Vec<_> = levels.iter_mut().filter(|level| level.len() > digest_len).collect();
        if tall.is_empty() {
            break;
        }
        let above = leaves_of_each(algorithm, &tall.iter().map(|level| &***level).collect::<Vec<_>>());
        tall.into_iter().zip(above).for_each(|(level, above)| *level = above.into());
    }
    let descriptors: Vec<_> = levels.iter().zip(sizes).map(|(root, size)| descriptor(algorithm, root, *size)).collect();
    let hashes = hash_each(algorithm, &descriptors.iter().collect::<Vec<_>>());
    let ids = hashes.chunks(digest_len).map(|hash| ObjectId::new(algorithm, hash));
    ids.map(|id| id.expect("a hash has the length of one")).collect()
}

/// `struct fsverity_descriptor`: version, hash algorithm, log2 of the block size, salt size, 4 reserved bytes, data size,
/// root hash (64), salt (32), reserved (144).
fn descriptor(algorithm: Algorithm, root: &[u8], size: u64) -> [u8; DESCRIPTOR] {
    let mut descriptor = [0; DESCRIPTOR];
    descriptor[0] = 1;
    descriptor[1] = algorithm.number();
    descriptor[2] = BLOCK.ilog2() as u8;
    descriptor[8..16].copy_from_slice(&size.to_le_bytes());
    // Of no data there is none: the kernel has zeros then.
    descriptor[16..16 + root.len()].copy_from_slice(root);
    descriptor
}

/// The fs-verity digest of `data`.
pub fn digest(algorithm: Algorithm, data: &[u8]) -> ObjectId {
    digests(algorithm, &[data]).pop().expect("one object has one digest")
}

/// The fs-verity digest of each of `all`. Several small objects at a time take less time than one after the other, where
/// [`crate::lanes`] is faster: one alone has too few blocks for it.
pub fn digests(algorithm: Algorithm, all: &[&[u8]]) -> Vec<ObjectId> {
    let sizes: Vec<_> = all.iter().map(|data| data.len() as u64).collect();
    let leaves = leaves_of_each(algorithm, all).into_iter().map(Cow::from).collect();
    digests_of_levels(algorithm, leaves, &sizes)
}

/// Whether `data`, read at byte `offset` of an object, matches the object's (already verified) `leaves`. So it is too of
/// nodes of a level of the tree, and those of the level above.
///
/// `offset` must be a multiple of [`BLOCK`], and `data` must end at a block boundary or at the object's end
/// (the caller knows the object's size; a shorter read would hash differently and is refused here).
pub fn range_matches(algorithm: Algorithm, leaves: &[u8], offset: u64, data: &[u8]) -> bool {
    if !offset.is_multiple_of(BLOCK as u64) {
        return false;
    }
    let digest_len = algorithm.digest_len();
    let Some(first) = usize::try_from(offset / BLOCK as u64).ok().and_then(|block| block.checked_mul(digest_len))
    else {
        return false;
    };
    leaves.get(first..).is_some_and(|expected| expected.starts_with(&self::leaves(algorithm, data)))
}

/// Computes leaves from data that arrives in pieces of any length, as when an object is read from disk.
pub struct LeafHasher {
    algorithm: Algorithm,
    leaves: Vec<u8>,
    /// Bytes of a block that is not full yet; always shorter than [`BLOCK`] between calls.
    partial: Vec<u8>,
    size: u64,
}

impl LeafHasher {
    /// A hasher that has seen no data.
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, leaves: Vec::new(), partial: Vec::new(), size: 0 }
    }

    /// Adds the next bytes of the object.
    pub fn update(&mut self, mut data: &[u8]) {
        self.size += data.len() as u64;
        if !self.partial.is_empty() {
            let take = data.len().min(BLOCK - self.partial.len());
            self.partial.extend_from_slice(&data[..take]);
            data = &data[take..];
            if self.partial.len() < BLOCK {
                return;
            }
            self.leaves.extend(leaves(self.algorithm, &self.partial));
            self.partial.clear();
        }
        let whole = data.len() / BLOCK * BLOCK;
        self.leaves.extend(leaves(self.algorithm, &data[..whole]));
        self.partial.extend_from_slice(&data[whole..]);
    }

    /// The object's id and leaves.
    pub fn finish(mut self) -> (ObjectId, Vec<u8>) {
        self.leaves.extend(leaves(self.algorithm, &self.partial));
        let id = digest_of_leaves(self.algorithm, &self.leaves, self.size).expect("one leaf was made per block");
        (id, self.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `fsverity digest --hash-alg=ALG FILE` of fsverity-utils 1.5 on files of `i % 251` bytes of these sizes.
    const VECTORS: &[(usize, &str, &str)] = include!("verity_vectors.rs");

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn digests_are_those_of_fsverity_utils() {
        for (len, sha256, sha512) in VECTORS {
            let data = pattern(*len);
            assert_eq!(digest(Algorithm::Sha256, &data).to_hex(), *sha256, "sha256 of {len} bytes");
            assert_eq!(digest(Algorithm::Sha512, &data).to_hex(), *sha512, "sha512 of {len} bytes");
        }
        let data: Vec<_> = VECTORS.iter().map(|(len, ..)| pattern(*len)).collect();
        let side_by_side = digests(Algorithm::Sha256, &data.iter().map(|data| &data[..]).collect::<Vec<_>>());
        let expected: Vec<_> = VECTORS.iter().map(|(_, sha256, _)| *sha256).collect();
        assert_eq!(side_by_side.iter().map(ObjectId::to_hex).collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn several_objects_have_the_digests_that_each_has_alone(lens in prop::collection::vec(0usize..9000, 0..20)) {
            let data: Vec<_> = lens.into_iter().map(pattern).collect();
            let all: Vec<&[u8]> = data.iter().map(|data| &data[..]).collect();
            let alone: Vec<_> = all.iter().map(|data| digest(Algorithm::Sha256, data)).collect();
            prop_assert_eq!(digests(Algorithm::Sha256, &all), alone);
        }

        #[test]
        fn pieces_hash_like_the_whole(len in 0usize..40_000, piece in 1usize..9000) {
            let data = pattern(len);
            let mut hasher = LeafHasher::new(Algorithm::Sha256);
            data.chunks(piece).for_each(|piece| hasher.update(piece));
            let (id, found) = hasher.finish();
            prop_assert_eq!(id, digest(Algorithm::Sha256, &data));
            prop_assert_eq!(found, leaves(Algorithm::Sha256, &data));
        }

        #[test]
        fn a_range_verifies_and_a_changed_one_does_not(len in 1usize..60_000, block in 0usize..15, blocks in 1usize..8, flip in any::<prop::sample::Index>()) {
            let mut data = pattern(len);
            let known = leaves(Algorithm::Sha512, &data);
            let start = (block * BLOCK).min((len - 1) / BLOCK * BLOCK);
            let end = (start + blocks * BLOCK).min(len);
            prop_assert!(range_matches(Algorithm::Sha512, &known, start as u64, &data[start..end]));
            data[start + flip.index(end - start)] ^= 1;
            prop_assert!(!range_matches(Algorithm::Sha512, &known, start as u64, &data[start..end]));
        }
    }

    #[test]
    fn every_level_has_the_objects_digest_and_proves_the_one_below() {
        for (len, levels) in [(0, 1), (1, 1), (BLOCK, 1), (BLOCK + 1, 2), (129 * BLOCK, 3), (300 * BLOCK + 7, 3)] {
            let data = pattern(len);
            let (id, size) = (digest(Algorithm::Sha256, &data), len as u64);
            let mut nodes = leaves(Algorithm::Sha256, &data);
            for level in 0..levels {
                assert_eq!(
                    level_len(Algorithm::Sha256, size, level),
                    nodes.len() as u64,
                    "level {level} of {len} bytes"
                );
                assert_eq!(digest_of_level(Algorithm::Sha256, &nodes, level, size), Some(id));
                let above = level_above(Algorithm::Sha256, &nodes);
                assert!(range_matches(Algorithm::Sha256, &above, 0, &nodes));
                nodes = above;
            }
            assert_eq!(level_len(Algorithm::Sha256, size, levels), 0);
            assert!(len == 0 || digest_of_level(Algorithm::Sha256, &[], levels, size).is_none());
        }
    }

    #[test]
    fn ranges_beyond_the_leaves_and_unaligned_ones_are_refused() {
        let data = pattern(3 * BLOCK);
        let known = leaves(Algorithm::Sha256, &data);
        assert!(!range_matches(Algorithm::Sha256, &known, 3 * BLOCK as u64, &data[..1]));
        assert!(!range_matches(Algorithm::Sha256, &known, 1, &data[1..]));
        assert!(!range_matches(Algorithm::Sha256, &known, u64::MAX / BLOCK as u64 * BLOCK as u64, &data[..1]));
        assert_eq!(digest_of_leaves(Algorithm::Sha256, &known[1..], data.len() as u64), None);
    }
}
