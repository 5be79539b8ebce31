//! Bytes that match a digest, as a type of their own.
//!
//! What comes over a wire or from a cache on disk is [`Unverified`]: it has a length, and nothing else of it can be
//! seen. The checks against a digest take it and return the same bytes, without a copy, as [`Verified`]. Nothing else
//! makes those, so a function that wants `Verified` cannot be handed bytes that nobody has checked.
//!
//! A check says *what* the bytes are: the object with this id, or these blocks of it. The type does not remember that,
//! as a `Vec` does not remember which file it was read from; whoever keeps verified bytes keeps them under that name.
//!
//! ```
//! use lazyroot_proto::verified::Unverified;
//! use lazyroot_proto::{Algorithm, verity};
//!
//! let id = verity::digest(Algorithm::Sha256, b"content");
//! let content = Unverified::from(b"content".to_vec()).verify_object(&id)?;
//! assert_eq!(&*content, b"content");
//! assert_eq!(&*content.slice(3..), b"tent");
//! assert!(Unverified::from(b"something else".to_vec()).verify_object(&id).is_err());
//! # Ok::<_, lazyroot_proto::verified::Mismatch>(())
//! ```
//!
//! Bytes are not made verified by hand:
//!
//! ```compile_fail,E0423
//! let content = lazyroot_proto::verified::Verified(b"content".to_vec().into());
//! ```
//!
//! ```compile_fail,E0277
//! let content = lazyroot_proto::verified::Verified::from(b"content".to_vec());
//! ```
//!
//! And what is not verified cannot be read:
//!
//! ```compile_fail,E0614
//! let content = lazyroot_proto::verified::Unverified::from(b"content".to_vec());
//! println!("{:?}", *content);
//! ```

use std::fmt;
use std::ops::{Deref, Range, RangeBounds};

use bytes::Bytes;

use crate::verity::{self, BLOCK, LeafHasher};
use crate::{Algorithm, ObjectId};

/// Bytes that were checked against a digest. A clone shares them.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified(Bytes);

/// Bytes that nobody has checked yet.
#[derive(Clone)]
pub struct Unverified(Bytes);

/// The bytes are not those that the digest names.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the content does not match its digest")]
pub struct Mismatch {
    /// The object that they are, if they could be all of one.
    pub found: Option<ObjectId>,
}

/// Verified nodes of a level of a Merkle tree, and the bytes of the level below (or of the object itself) whose hashes
/// they are.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The hashes, one for each block; the last ones are missing where the level below ends.
    pub nodes: Verified,
    /// Where the level below has these blocks, in bytes: both ends are multiples of [`BLOCK`].
    pub covers: Range<u64>,
}

impl From<Vec<u8>> for Unverified {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for Unverified {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl Unverified {
    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These bytes one behind the other: copied, unless they are all in one part.
    pub fn concat(parts: &[Self]) -> Self {
        Self(concat(parts.iter().map(|part| &part.0)))
    }

    /// All of the object with this id: its fs-verity digest.
    ///
    /// # Errors
    /// If it is another object.
    pub fn verify_object(self, id: &ObjectId) -> Result<Verified, Mismatch> {
        let found = verity::digest(id.algorithm(), &self.0);
        self.verified_if(found == *id, Some(found))
    }

    /// All of each of these objects, hashed together ([`verity::digests`]). Their ids have one algorithm, as those of an
    /// image do; an object with another one than the first has does not match.
    pub fn verify_objects(objects: Vec<(ObjectId, Self)>) -> Vec<Result<Verified, Mismatch>> {
        let Some((first, _)) = objects.first() else { return Vec::new() };
        let contents: Vec<&[u8]> = objects.iter().map(|(_, content)| &*content.0).collect();
        let digests = verity::digests(first.algorithm(), &contents);
        let verify = |((id, content), found): ((ObjectId, Self), _)| content.verified_if(found == id, Some(found));
        objects.into_iter().zip(digests).map(verify).collect()
    }

    /// All of a level of the Merkle tree of the object with this id, which has `size` bytes; level 0 is the leaves.
    ///
    /// # Errors
    /// If they are not those nodes, or not all of them.
    pub fn verify_level(self, id: &ObjectId, size: u64, level: u8) -> Result<Verified, Mismatch> {
        let found = verity::digest_of_level(id.algorithm(), &self.0, level, size);
        self.verified_if(found == Some(*id), found)
    }

    /// Blocks at byte `offset` of an object, as `nodes` (its leaves, from the first on) have their hashes; or nodes of a
    /// level of its tree, as those of the level above do. `offset` is a multiple of [`BLOCK`]. The bytes end with a block
    /// or with the object.
    ///
    /// # Errors
    /// If they are not those blocks.
    pub fn verify_range(self, algorithm: Algorithm, offset: u64, nodes: &Verified) -> Result<Verified, Mismatch> {
        let matches = verity::range_matches(algorithm, nodes, offset, &self.0);
        self.verified_if(matches, None)
    }

    /// As [`Unverified::verify_range`], where no one has all the nodes at hand: `proof_of` is called with the byte whose
    /// block is checked next, and returns the nodes that prove that block and others around it.
    ///
    /// # Errors
    /// Whatever `proof_of` fails with. The result inside is that of the check.
    pub fn verify_range_by<E>(
        self,
        algorithm: Algorithm,
        offset: u64,
        mut proof_of: impl FnMut(u64) -> Result<Proof, E>,
    ) -> Result<Result<Verified, Mismatch>, E> {
        let mut checked = 0;
        while checked < self.0.len() {
            let at = offset.saturating_add(checked as u64);
            let Proof { nodes, covers } = proof_of(at)?;
            let aligned = covers.start.is_multiple_of(BLOCK as u64) && covers.end.is_multiple_of(BLOCK as u64);
            if !aligned || !covers.contains(&at) {
                return Ok(Err(Mismatch { found: None }));
            }
            let end = self.0.len().min(checked + usize::try_from(covers.end - at).unwrap_or(usize::MAX));
            if !verity::range_matches(algorithm, &nodes, at - covers.start, &self.0[checked..end]) {
                return Ok(Err(Mismatch { found: None }));
            }
            checked = end;
        }
        Ok(self.verified_if(true, None))
    }

    /// The verdict of a check that has just been made, in this file: there is no other way to verified bytes.
    fn verified_if(self, matches: bool, found: Option<ObjectId>) -> Result<Verified, Mismatch> {
        if matches { Ok(Verified(self.0)) } else { Err(Mismatch { found }) }
    }
}

impl LeafHasher {
    /// The leaves of the object that was hashed, if that is the one with this id: they are verified with it.
    ///
    /// # Errors
    /// If it is another object.
    pub fn verify(self, id: &ObjectId) -> Result<Verified, Mismatch> {
        let (found, mut leaves) = self.finish();
        // Whoever keeps them counts their length, and they have grown piece by piece.
        leaves.shrink_to_fit();
        Unverified::from(leaves).verified_if(found == *id, Some(found))
    }
}

impl Verified {
    /// No bytes, of which there is nothing to check.
    pub fn empty() -> Self {
        Self(Bytes::new())
    }

    /// A part of these bytes, shared with them.
    ///
    /// # Panics
    /// If it lies outside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        Self(self.0.slice(range))
    }

    /// Takes the first `len` bytes off.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, len: usize) -> Self {
        Self(self.0.split_to(len))
    }

    /// These bytes one behind the other: copied, unless they are all in one part. Of blocks of an object that follow one
    /// another, they are the range of it.
    pub fn concat(parts: &[Self]) -> Self {
        Self(concat(parts.iter().map(|part| &part.0)))
    }

    /// The hashes of their blocks of 4 KiB: the leaves of a verified object, or the level above verified nodes, which are
    /// as good as what they were made from.
    pub fn block_hashes(&self, algorithm: Algorithm) -> Self {
        Self(verity::leaves(algorithm, &self.0).into())
    }

    /// The bytes, of which the type does not say any more that they were verified. Nothing is copied.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

fn concat<'a>(mut parts: impl ExactSizeIterator<Item = &'a Bytes> + Clone) -> Bytes {
    if parts.len() == 1 {
        return parts.next().cloned().unwrap_or_default();
    }
    let mut joined = Vec::with_capacity(parts.clone().map(Bytes::len).sum());
    parts.for_each(|part| joined.extend_from_slice(part));
    joined.into()
}

impl Deref for Verified {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({} bytes)", self.0.len())
    }
}

impl fmt::Debug for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unverified({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    const ALGORITHM: Algorithm = Algorithm::Sha256;

    fn unverified(data: &[u8]) -> Unverified {
        data.to_vec().into()
    }

    fn verified(data: &[u8]) -> Verified {
        unverified(data).verify_object(&verity::digest(ALGORITHM, data)).unwrap()
    }

    /// `data`, with one byte of it changed unless `by` is 0.
    fn changed(data: &[u8], at: prop::sample::Index, by: u8) -> Vec<u8> {
        let mut data = data.to_vec();
        if !data.is_empty() {
            let at = at.index(data.len());
            data[at] ^= by;
        }
        data
    }

    proptest! {
        #[test]
        fn an_object_verifies_if_its_digest_is_the_id(
            data in prop::collection::vec(any::<u8>(), 0..10_000),
            at: prop::sample::Index,
            by in prop_oneof![Just(0), any::<u8>()],
        ) {
            let id = verity::digest(ALGORITHM, &data);
            let sent = changed(&data, at, by);
            let found = verity::digest(ALGORITHM, &sent);
            let verdict = unverified(&sent).verify_object(&id);
            prop_assert_eq!(verdict.is_ok(), found == id);
            match &verdict {
                Ok(verified) => prop_assert_eq!(&**verified, &data[..]),
                Err(mismatch) => prop_assert_eq!(mismatch.found, Some(found)),
            }
            let mut hasher = LeafHasher::new(ALGORITHM);
            hasher.update(&sent);
            let leaves = hasher.verify(&id);
            prop_assert_eq!(leaves.is_ok(), found == id);
            prop_assert!(leaves.is_err() || leaves == Ok(verified(&data).block_hashes(ALGORITHM)));
            let beside = (verity::digest(ALGORITHM, b"other"), unverified(b"other"));
            let verdicts = Unverified::verify_objects(vec![beside.clone(), (id, unverified(&sent)), beside]);
            prop_assert_eq!(&verdicts, &[Ok(verified(b"other")), verdict, Ok(verified(b"other"))]);
        }

        #[test]
        fn a_level_verifies_if_its_digest_is_the_id(
            // Those of two levels are long, and take long to hash.
            len in prop_oneof![30 => 0usize..20_000, 1 => 0usize..600_000],
            level in 0u8..3,
            size_off in prop_oneof![Just(0u64), 0u64..5000],
            at: prop::sample::Index,
            by in prop_oneof![Just(0), any::<u8>()],
        ) {
            let data = vec![7; len];
            let id = verity::digest(ALGORITHM, &data);
            let mut nodes = verity::leaves(ALGORITHM, &data);
            for _ in 0..level {
                nodes = verity::level_above(ALGORITHM, &nodes);
            }
            let (sent, size) = (changed(&nodes, at, by), len as u64 + size_off);
            let verdict = unverified(&sent).verify_level(&id, size, level);
            prop_assert_eq!(verdict.is_ok(), verity::digest_of_level(ALGORITHM, &sent, level, size) == Some(id));
        }

        #[test]
        fn a_range_verifies_if_the_leaves_have_its_hashes(
            len in 1usize..60_000,
            offset in prop_oneof![(0u64..20).prop_map(|block| block * BLOCK as u64), 0u64..70_000],
            blocks in 0usize..8,
            window in 1u64..6,
            at: prop::sample::Index,
            by in prop_oneof![Just(0), any::<u8>()],
        ) {
            let data: Vec<u8> = (0..len).map(|byte| (byte / BLOCK) as u8).collect();
            let leaves = verified(&data).block_hashes(ALGORITHM);
            let start = len.min(offset as usize);
            let range = changed(&data[start..len.min(start + blocks * BLOCK)], at, by);
            let expected = verity::range_matches(ALGORITHM, &leaves, offset, &range);
            let verdict = unverified(&range).verify_range(ALGORITHM, offset, &leaves);
            prop_assert_eq!(verdict.is_ok(), expected);
            prop_assert!(verdict.is_err() || verdict.is_ok_and(|verified| *verified == range));
            // The same in windows, each with the leaves of a few blocks; nothing is asked for where there is no data.
            let span = window * BLOCK as u64;
            let digest_len = ALGORITHM.digest_len() as u64;
            let proof_of = |at: u64| {
                let covers = at / span * span..(at / span + 1) * span;
                let node = |byte: u64| leaves.len().min((byte / BLOCK as u64 * digest_len) as usize);
                Ok::<_, Infallible>(Proof { nodes: leaves.slice(node(covers.start)..node(covers.end)), covers })
            };
            let Ok(verdict) = unverified(&range).verify_range_by(ALGORITHM, offset, proof_of);
            prop_assert_eq!(verdict.is_ok(), expected || range.is_empty());
        }
    }

    #[test]
    fn a_proof_of_something_else_proves_nothing() {
        let data = [1; 2 * BLOCK];
        let leaves = verified(&data).block_hashes(ALGORITHM);
        for covers in [0..1, 0..0, 1..8192, BLOCK as u64..2 * BLOCK as u64, 0..5000] {
            let proof_of = |_| Ok::<_, Infallible>(Proof { nodes: leaves.clone(), covers: covers.clone() });
            let Ok(verdict) = unverified(&data).verify_range_by(ALGORITHM, 0, proof_of);
            assert_eq!(verdict, Err(Mismatch { found: None }), "{covers:?}");
        }
        let failed = unverified(&data).verify_range_by(ALGORITHM, 0, |_| Err("no nodes"));
        assert_eq!(failed, Err("no nodes"));
    }

    #[test]
    fn parts_are_shared_and_join_to_the_whole() {
        let data: Vec<u8> = (0..10_000).map(|byte| (byte % 251) as u8).collect();
        let whole = verified(&data);
        let mut rest = whole.clone();
        let parts = [rest.split_to(4096), rest.slice(..4096), rest.slice(4096..)];
        assert_eq!(parts[1].as_ptr(), whole[4096..].as_ptr(), "nothing is copied");
        assert_eq!(Verified::concat(&parts), whole);
        let address = whole.as_ptr();
        drop((rest, parts));
        let taken = Vec::from(whole.into_bytes());
        assert_eq!(taken.as_ptr(), address, "nor when it is taken apart");
        assert!(Verified::empty().is_empty() && Verified::concat(&[]).is_empty());
        let sent = Unverified::concat(&[unverified(&data[..5]), unverified(&data[5..])]);
        assert_eq!(&*sent.verify_object(&verity::digest(ALGORITHM, &data)).unwrap(), &data[..]);
    }
}
