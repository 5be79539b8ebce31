//! The object index of an image: every object its manifest names, with its size, in manifest order.
//!
//! The host computes it once per image and keeps it beside the repository; the guest receives it with the
//! manifest, checks it against the digest on its kernel command line, and answers every size from it. Layout,
//! little-endian: magic `LZRTIDX1`, u8 algorithm, 3 zero bytes, u32 count, then per object the digest (32 or
//! 64 bytes) and its size as u64.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::{Algorithm, ObjectId, verity};

const MAGIC: &[u8; 8] = b"LZRTIDX1";
const HEADER: usize = 16;

/// The objects of one image. Positions are manifest order: the order in which a walk of the manifest first
/// meets each object (directories in name order), so that neighbours in a tree are neighbours here.
#[derive(Clone, Debug)]
pub struct ObjectIndex {
    algorithm: Algorithm,
    entries: Vec<(ObjectId, u64)>,
    /// By the hash of the id that is there.
    positions: HashTable<u32>,
    hasher: RandomState,
}

impl PartialEq for ObjectIndex {
    fn eq(&self, other: &Self) -> bool {
        (self.algorithm, &self.entries) == (other.algorithm, &other.entries)
    }
}

impl Eq for ObjectIndex {}

/// Why bytes are no object index.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    /// Wrong magic, algorithm or length.
    #[error("the object index is damaged or of another version of lazyroot")]
    Malformed,
    /// The same object is listed twice.
    #[error("the object index lists {0} twice")]
    Duplicate(ObjectId),
    /// The object is listed as empty, but its id is not that of no data. A read of an empty file asks for nothing
    /// and so would never find out.
    #[error("the object index lists {0} with a size of 0, which it does not have")]
    NotEmpty(ObjectId),
}

impl ObjectIndex {
    /// An index of `objects` (id, size in bytes) in manifest order.
    ///
    /// # Errors
    /// If an object is listed twice, has another algorithm than `algorithm`, or is not as empty as its size says.
    pub fn new(algorithm: Algorithm, entries: Vec<(ObjectId, u64)>) -> Result<Self, IndexError> {
        let (mut positions, hasher) = (HashTable::with_capacity(entries.len()), RandomState::new());
        let id_at = |position: u32| &entries[position as usize].0;
        let empty = verity::digest(algorithm, &[]);
        for (position, (id, size)) in entries.iter().enumerate() {
            if id.algorithm() != algorithm {
                return Err(IndexError::Malformed);
            }
            if *size == 0 && *id != empty {
                return Err(IndexError::NotEmpty(*id));
            }
            let position = u32::try_from(position).map_err(|_| IndexError::Malformed)?;
            let same = |other: &u32| id_at(*other) == id;
            match positions.entry(hasher.hash_one(id), same, |other| hasher.hash_one(id_at(*other))) {
                Entry::Occupied(_) => return Err(IndexError::Duplicate(*id)),
                Entry::Vacant(entry) => entry.insert(position),
            };
        }
        Ok(Self { algorithm, entries, positions, hasher })
    }

    /// The index's bytes, the same for the same image everywhere.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entry = self.algorithm.digest_len() + 8;
        let mut bytes = Vec::with_capacity(HEADER + self.entries.len() * entry);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[self.algorithm.number(), 0, 0, 0]);
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for (id, size) in &self.entries {
            bytes.extend_from_slice(id.as_bytes());
            bytes.extend_from_slice(&size.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`ObjectIndex::to_bytes`] wrote.
    ///
    /// # Errors
    /// If the bytes are not exactly such an index.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IndexError> {
        let algorithm = header(bytes)?.0;
        Self::new(algorithm, entries(bytes)?.collect())
    }

    /// The digest that names this index on the kernel command line: fs-verity over [`ObjectIndex::to_bytes`].
    pub fn id(&self) -> ObjectId {
        verity::digest(self.algorithm, &self.to_bytes())
    }

    /// The image's hash.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Where `id` stands in manifest order, if the image has it.
    pub fn position(&self, id: &ObjectId) -> Option<u32> {
        let same = |position: &u32| self.entries[*position as usize].0 == *id;
        self.positions.find(self.hasher.hash_one(id), same).copied()
    }

    /// The object at `position`: its id and its size in bytes.
    pub fn get(&self, position: u32) -> Option<(ObjectId, u64)> {
        self.entries.get(position as usize).copied()
    }

    /// Every object with its size in bytes, in manifest order.
    pub fn entries(&self) -> &[(ObjectId, u64)] {
        &self.entries
    }

    /// The sizes of all objects together, in bytes; no more than a `u64` holds, whatever the manifest claims.
    pub fn total_bytes(&self) -> u64 {
        self.entries.iter().fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }
}

/// The entries in an index's bytes, for those who go through them once. Not checked as [`ObjectIndex::new`] does.
///
/// # Errors
/// If the bytes are not of an index's form.
pub fn entries(bytes: &[u8]) -> Result<impl Iterator<Item = (ObjectId, u64)>, IndexError> {
    let (algorithm, body) = header(bytes)?;
    let digest_len = algorithm.digest_len();
    Ok(body.chunks_exact(digest_len + 8).map(move |entry| {
        let (digest, size) = entry.split_at(digest_len);
        let id = ObjectId::new(algorithm, digest).expect("the digest's length was chosen to fit");
        (id, u64::from_le_bytes(size.try_into().expect("8 bytes")))
    }))
}

/// The algorithm, and the bytes of the entries.
fn header(bytes: &[u8]) -> Result<(Algorithm, &[u8]), IndexError> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(IndexError::Malformed)?;
    let algorithm = Algorithm::from_number(header[8]).ok_or(IndexError::Malformed)?;
    let count = u32::from_le_bytes(header[12..16].try_into().expect("4 bytes")) as usize;
    let entry = algorithm.digest_len() + 8;
    let well_formed = &header[..8] == MAGIC && header[9..12] == [0; 3] && count.checked_mul(entry) == Some(body.len());
    if well_formed { Ok((algorithm, body)) } else { Err(IndexError::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ObjectIndex {
        let entries = (0..5u8).map(|i| (verity::digest(Algorithm::Sha256, &[i]), u64::from(i + 1) * 7)).collect();
        ObjectIndex::new(Algorithm::Sha256, entries).unwrap()
    }

    #[test]
    fn bytes_round_trip_and_keep_the_order() {
        let index = sample();
        assert_eq!(ObjectIndex::from_bytes(&index.to_bytes()).unwrap(), index);
        assert_eq!(index.position(&index.get(3).unwrap().0), Some(3));
    }

    #[test]
    fn only_the_object_of_no_data_may_be_empty() {
        let id = |data: &[u8]| verity::digest(Algorithm::Sha512, data);
        assert!(ObjectIndex::new(Algorithm::Sha512, vec![(id(b""), 0)]).is_ok());
        let lying = ObjectIndex::new(Algorithm::Sha512, vec![(id(b"x"), 0)]);
        assert_eq!(lying, Err(IndexError::NotEmpty(id(b"x"))));
    }

    #[test]
    fn cut_extended_or_changed_bytes_are_refused() {
        let bytes = sample().to_bytes();
        for cut in [0, 7, 15, 16, bytes.len() - 1] {
            assert_eq!(ObjectIndex::from_bytes(&bytes[..cut]), Err(IndexError::Malformed), "cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(ObjectIndex::from_bytes(&longer), Err(IndexError::Malformed));
        let mut twice = bytes;
        twice.copy_within(16..56, 56);
        assert!(matches!(ObjectIndex::from_bytes(&twice), Err(IndexError::Duplicate(_))));
    }
}
