//! Boot profiles: what VMs read of an image in their first minute, so that the next one is sent it ahead.
//!
//! A profile is merged over runs. What a run did not read is kept for a while, since the next may again: images are
//! booted for different things. Profiles are hints: a wrong one costs some bytes, never a wrong read, so a file that is
//! damaged or of another version counts as none.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::{Extent, Hint, Origin, Read};
use serde::{Deserialize, Serialize};

use crate::store::files::Files;

/// Of reads, those in this time after the first are of the boot, in microseconds: what runs later differs from run to run.
pub const BOOT: u64 = 60_000_000;

/// Runs in a row that may do without an extent before it is forgotten.
const KEPT_FOR: u8 = 3;

/// Blocks (of 4 KiB) that are remembered together: ranges of large objects vary a little from run to run with the
/// kernel's readahead, and smaller pieces would cost more in bookkeeping than they save in bytes.
const GRAIN: u32 = 4;

/// Extents are joined to at most this many blocks (256 KiB): what one reply carries without holding up a read that a
/// program waits for.
const LONGEST: u32 = 64;

/// One in so many pieces is watched in each run, in turn, and those that were not read when they were watched: a guest
/// sees whether a piece is read only if the program has to ask for it, which costs about 0.1 ms.
const WATCHED: u32 = 16;

/// Version of the file.
const VERSION: u32 = 1;

/// What was read of one image, in the order of first reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    version: u32,
    /// Runs that were merged.
    pub runs: u32,
    /// What they read.
    pub entries: Vec<Entry>,
}

/// A piece of an object that a run has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The object's position in the image's index.
    pub position: u32,
    /// The piece: its first block is this times [`GRAIN`].
    grain: u32,
    /// When it was read, in microseconds after the run's first read, in the run that read it last.
    pub at: u64,
    /// Runs that have watched it since it was read last.
    pub missed: u8,
}

impl Entry {
    /// The piece, which ends with its object; `None` if it lies outside of the image.
    pub fn extent(&self, index: &ObjectIndex) -> Option<Extent> {
        let (_, size) = index.get(self.position)?;
        let block = self.grain.checked_mul(GRAIN)?;
        let (_, len) = Extent { position: self.position, block, blocks: GRAIN }.bytes(size)?;
        let blocks = len.div_ceil(lazyroot_proto::verity::BLOCK as u64) as u32;
        Some(Extent { position: self.position, block, blocks })
    }
}

impl Profile {
    /// Takes in what another run read. Reads that failed or came long after the first do not count; neither does a run
    /// that read nothing.
    pub fn merge(&mut self, index: &ObjectIndex, reads: &[Read]) {
        let read_well = |read: &&Read| read.origin != Origin::Failed;
        let Some(start) = reads.iter().filter(read_well).map(|read| read.at).min() else { return };
        let mut run = HashMap::new();
        let mut unseen = HashSet::new();
        for read in reads.iter().filter(read_well).filter(|read| read.at - start <= BOOT) {
            let Some((_, size)) = index.get(read.extent.position) else { continue };
            let blocks = u32::try_from(size.div_ceil(lazyroot_proto::verity::BLOCK as u64)).unwrap_or(u32::MAX);
            let first = read.extent.block;
            let end = first.saturating_add(read.extent.blocks).min(blocks);
            if first >= end {
                continue;
            }
            for grain in first / GRAIN..end.div_ceil(GRAIN) {
                if read.origin == Origin::Preloaded {
                    unseen.insert((read.extent.position, grain));
                    continue;
                }
                let at = run.entry((read.extent.position, grain)).or_insert(u64::MAX);
                *at = (*at).min(read.at - start);
            }
        }
        for entry in &mut self.entries {
            match run.entry((entry.position, entry.grain)) {
                Slot::Occupied(read) => (entry.at, entry.missed) = (read.remove(), 0),
                Slot::Vacant(_) if unseen.contains(&(entry.position, entry.grain)) => (),
                Slot::Vacant(_) => entry.missed += 1,
            }
        }
        self.entries.retain(|entry| entry.missed < KEPT_FOR);
        self.entries.extend(run.into_iter().map(|((position, grain), at)| Entry { position, grain, at, missed: 0 }));
        self.entries.sort_unstable_by_key(|entry| (entry.at, entry.position, entry.grain));
        self.version = VERSION;
        self.runs += 1;
    }

    /// What to send ahead, the piece needed first first; pieces that follow each other in time and place are one.
    pub fn hints(&self, index: &ObjectIndex) -> Vec<Hint> {
        let mut hints: Vec<Hint> = Vec::new();
        for entry in &self.entries {
            let Some(extent) = entry.extent(index) else { continue };
            let watched = entry.missed > 0 || entry.position % WATCHED == self.runs % WATCHED;
            match hints.last_mut() {
                Some(Hint { extent: last, watched: also_watched })
                    if last.position == extent.position
                        && last.block + last.blocks == extent.block
                        && last.blocks + extent.blocks <= LONGEST =>
                {
                    last.blocks += extent.blocks;
                    *also_watched |= watched;
                }
                _ => hints.push(Hint { extent, watched }),
            }
        }
        hints
    }

    /// Bytes in the pieces together.
    pub fn bytes(&self, index: &ObjectIndex) -> u64 {
        let bytes = |hint: &Hint| Some(hint.extent.bytes(index.get(hint.extent.position)?.1)?.1);
        self.hints(index).iter().filter_map(bytes).sum()
    }
}

/// The profile of one image, kept beside its repository.
#[derive(Clone, Debug)]
pub struct ProfileFile {
    files: Files,
    name: String,
}

impl ProfileFile {
    pub(in crate::store) fn new(files: Files, image: &ObjectId) -> Self {
        Self { files, name: format!("profiles/{}", image.to_hex()) }
    }

    /// The profile, if there is one that makes sense.
    pub fn read(&self) -> Option<Profile> {
        let profile: Profile = serde_json::from_slice(&self.files.read(&self.name).ok()?).ok()?;
        (profile.version == VERSION).then_some(profile)
    }

    /// Something that is another whenever the profile is: its file's inode and time. `None` if there is no profile.
    pub fn version(&self) -> Option<(u64, SystemTime)> {
        let meta = std::fs::metadata(self.files.path(&self.name)).ok()?;
        Some((meta.ino(), meta.modified().ok()?))
    }

    /// Takes in what a run read. Of several that end at the same moment, one may be lost.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn merge(&self, index: &ObjectIndex, reads: &[Read]) -> Result<()> {
        let mut profile = self.read().unwrap_or_default();
        profile.merge(index, reads);
        self.write(&profile)
    }

    /// Replaces the profile.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, profile: &Profile) -> Result<()> {
        let bytes = serde_json::to_vec(profile).expect("numbers are JSON");
        let path = self.files.path(&self.name);
        self.files.write(&self.name, &bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets the profile; that there is none is fine.
    ///
    /// # Errors
    /// If the file is there and cannot be removed.
    pub fn remove(&self) -> Result<()> {
        self.files.remove(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::{Algorithm, verity};

    fn index(sizes: &[u64]) -> ObjectIndex {
        let entry = |(number, size): (usize, &u64)| (verity::digest(Algorithm::Sha256, &number.to_le_bytes()), *size);
        ObjectIndex::new(Algorithm::Sha256, sizes.iter().enumerate().map(entry).collect()).unwrap()
    }

    fn read(position: u32, block: u32, blocks: u32, at: u64) -> Read {
        Read { extent: Extent { position, block, blocks }, at, waited: 0, origin: Origin::Host }
    }

    #[test]
    fn extents_come_in_the_order_of_reading_and_end_with_the_object() {
        let index = index(&[100, 1 << 20, 5 * 4096 + 1]);
        let mut profile = Profile::default();
        profile.merge(&index, &[read(2, 0, 6, 1000), read(1, 10, 1, 2000), read(0, 0, 1, 3000), read(1, 0, 90, 4000)]);
        let extent = |position, block, blocks| Extent { position, block, blocks };
        let expected =
            [extent(2, 0, 6), extent(1, 8, 4), extent(0, 0, 1), extent(1, 0, 8), extent(1, 12, 64), extent(1, 76, 16)];
        let extents: Vec<_> = profile.hints(&index).iter().map(|hint| hint.extent).collect();
        assert_eq!(extents, expected);
        assert_eq!(profile.bytes(&index), 100 + 92 * 4096 + 5 * 4096 + 1);
    }

    #[test]
    fn what_is_no_longer_read_leaves_after_a_few_runs() {
        let index = index(&[100, 100]);
        let mut profile = Profile::default();
        profile.merge(&index, &[read(0, 0, 1, 5), read(1, 0, 1, 6)]);
        for _ in 0..KEPT_FOR - 1 {
            profile.merge(&index, &[read(1, 0, 1, 5)]);
        }
        assert_eq!(profile.entries.len(), 2);
        profile.merge(&index, &[read(1, 0, 1, 5)]);
        assert_eq!(profile.entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), [1]);
        assert_eq!(profile.runs, u32::from(KEPT_FOR) + 1);
    }

    #[test]
    fn every_piece_is_watched_now_and_then_and_only_then_missed() {
        let index = index(&[100; 64]);
        let mut profile = Profile::default();
        let all: Vec<_> = (0..64).map(|position| read(position, 0, 1, 5)).collect();
        profile.merge(&index, &all);
        let mut watched = HashSet::new();
        for _ in 0..WATCHED {
            let hints = profile.hints(&index);
            let this_run: Vec<_> = hints.iter().filter(|hint| hint.watched).map(|hint| hint.extent.position).collect();
            assert_eq!(this_run.len(), 64 / WATCHED as usize);
            watched.extend(this_run);
            // The guest reads what it watches, and cannot see the rest.
            let seen = |hint: &Hint| if hint.watched { Origin::Profile } else { Origin::Preloaded };
            let reads = hints.iter().map(|hint| Read { origin: seen(hint), ..read(hint.extent.position, 0, 1, 5) });
            profile.merge(&index, &reads.collect::<Vec<_>>());
        }
        assert_eq!((watched.len(), profile.entries.len()), (64, 64));
        // Now nothing is read any more: what is missed once is watched until it leaves.
        for _ in 0..WATCHED + u32::from(KEPT_FOR) {
            let unseen = profile.hints(&index).into_iter().filter(|hint| !hint.watched);
            let reads = unseen.map(|hint| Read { origin: Origin::Preloaded, ..read(hint.extent.position, 0, 1, 5) });
            let other = Read { origin: Origin::Host, ..read(63, 0, 1, 5) };
            profile.merge(&index, &reads.chain([other]).collect::<Vec<_>>());
        }
        assert_eq!(profile.entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), [63]);
    }

    #[test]
    fn what_failed_lies_outside_or_came_late_is_not_remembered() {
        let index = index(&[100]);
        let mut profile = Profile::default();
        let failed = Read { origin: Origin::Failed, ..read(0, 0, 1, 5) };
        profile.merge(&index, &[failed]);
        assert_eq!(profile.runs, 0, "a run that read nothing says nothing");
        profile.merge(&index, &[read(9, 0, 1, 5), read(0, 7, 1, 5), read(0, u32::MAX, u32::MAX, 5)]);
        assert!(profile.entries.is_empty());
        profile.merge(&index, &[read(9, 0, 1, 5), read(0, 0, 1, 6 + BOOT)]);
        assert!(profile.entries.is_empty());
    }

    #[test]
    fn a_damaged_or_older_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let (index, id) = (index(&[100]), verity::digest(Algorithm::Sha256, b"image"));
        let file = ProfileFile::new(Files::new(dir.path()), &id);
        assert_eq!(file.read(), None);
        file.merge(&index, &[read(0, 0, 1, 5)]).unwrap();
        assert_eq!(file.read().unwrap().entries.len(), 1);
        for damaged in [&b"{\"version\":0,\"runs\":1,\"entries\":[]}"[..], b"", b"\0\0"] {
            Files::new(dir.path()).write(&file.name, damaged).unwrap();
            assert_eq!(file.read(), None);
        }
        file.merge(&index, &[read(0, 0, 1, 5)]).unwrap();
        assert_eq!(file.read().unwrap().runs, 1);
        file.remove().unwrap();
        file.remove().unwrap();
        assert_eq!(file.read(), None);
    }
}
