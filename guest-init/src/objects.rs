//! Verified reads of an image's objects: what the FUSE layer asks, answered from the link.
//!
//! Nothing leaves this module that has not been checked against a digest from the verified object index.
//! Small objects are fetched whole, which one hash over their blocks proves. Of large ones the Merkle leaves
//! come first (32 or 64 bytes for every 4 KiB, checked against the digest), and then just the ranges asked for.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use lazyroot_proto::frame::{EventKind, MAX_READ};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{ObjectId, verity};

use crate::clock::monotonic_now;
use crate::link::{Link, LinkError};

/// Objects up to this many bytes travel whole: 99 % of the objects of a Linux image, and at vsock's speed
/// (tens of MiB/s emulated, GB/s otherwise) no dearer than the extra round trip for leaves.
const WHOLE_MAX: u64 = 256 << 10;

/// Memory for objects fetched whole, in bytes. The kernel's page cache keeps what programs read; this only
/// bridges the several READs that readahead makes of one file.
const WHOLE_BUDGET: usize = 8 << 20;

/// Memory for Merkle leaves, in bytes: enough for 1 GiB (SHA-256) of large files being read at a time.
const LEAVES_BUDGET: usize = 8 << 20;

/// Why a read failed. The text names the object.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The host could not deliver it.
    #[error("object {id}: {error}")]
    Link {
        /// Which object.
        id: ObjectId,
        /// What went wrong.
        error: LinkError,
    },
    /// What arrived is not what the digest names.
    #[error("object {0}: the content does not match its digest")]
    Corrupt(ObjectId),
}

/// The objects of one image.
pub struct Objects {
    link: Arc<Link>,
    index: ObjectIndex,
    whole: Cache,
    leaves: Cache,
    /// Objects whose failure was told.
    told: Mutex<HashSet<u32>>,
}

/// Bytes that a read returns: a part of a shared buffer, so that nothing is copied on the way to the kernel.
pub struct Bytes {
    data: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }
}

impl Objects {
    /// The objects in `index` (already verified), read through `link`.
    pub fn new(link: Arc<Link>, index: ObjectIndex) -> Self {
        Self { link, index, whole: Cache::new(WHOLE_BUDGET), leaves: Cache::new(LEAVES_BUDGET), told: Mutex::default() }
    }

    /// The image's object index.
    pub fn index(&self) -> &ObjectIndex {
        &self.index
    }

    /// The session with the host.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Up to `len` bytes at byte `offset` of the object at `position` in the index; fewer only at its end.
    /// `None` if there is no such object.
    pub fn read(&self, position: u32, offset: u64, len: u32) -> Option<Result<Bytes, ReadError>> {
        let (id, size) = self.index.get(position)?;
        let start = offset.min(size);
        let end = size.min(start + u64::from(len));
        let read = if size <= WHOLE_MAX {
            self.whole(position, id, size).map(|data| Bytes { data, start: start as usize, end: end as usize })
        } else {
            self.range(position, id, size, start, end)
        };
        if let Err(error) = &read {
            self.tell(position, error);
        }
        Some(read)
    }

    /// Says once that an object cannot be read, here (the console) and on the host. The kernel asks for every page
    /// of a failed read again.
    fn tell(&self, position: u32, error: &ReadError) {
        if self.told.lock().expect("no panic under the lock").insert(position) {
            eprintln!("lazyroot: {error}");
            self.link.event(EventKind::Warning, monotonic_now(), &error.to_string());
        }
    }

    fn whole(&self, position: u32, id: ObjectId, size: u64) -> Result<Arc<Vec<u8>>, ReadError> {
        self.whole.get_or_fetch(position, || {
            let data = match size {
                0 => Vec::new(),
                _ => self.link.read(id, 0, size as u32).map_err(|error| ReadError::Link { id, error })?,
            };
            match verity::digest(id.algorithm(), &data) == id {
                true => Ok(data),
                false => Err(ReadError::Corrupt(id)),
            }
        })
    }

    fn range(&self, position: u32, id: ObjectId, size: u64, start: u64, end: u64) -> Result<Bytes, ReadError> {
        let link_error = |error| ReadError::Link { id, error };
        let leaves = self.leaves.get_or_fetch(position, || {
            let len = verity::leaves_len(id.algorithm(), size);
            let leaves = self.link.leaves(id, len).map_err(link_error)?;
            match verity::digest_of_leaves(id.algorithm(), &leaves, size) == Some(id) {
                true => Ok(leaves),
                false => Err(ReadError::Corrupt(id)),
            }
        })?;
        // Whole blocks around the range: only they can be checked. The kernel asks for whole pages anyway.
        let block = verity::BLOCK as u64;
        let first = start / block * block;
        let last = end.next_multiple_of(block).min(size);
        let mut data = Vec::with_capacity((last - first) as usize);
        while first + (data.len() as u64) < last {
            let offset = first + data.len() as u64;
            let len = (last - offset).min(MAX_READ.into()) as u32;
            let piece = self.link.read(id, offset, len).map_err(link_error)?;
            if data.is_empty() { data = piece } else { data.extend_from_slice(&piece) }
        }
        if !verity::range_matches(id.algorithm(), &leaves, first, &data) {
            return Err(ReadError::Corrupt(id));
        }
        Ok(Bytes { data: Arc::new(data), start: (start - first) as usize, end: (end - first) as usize })
    }
}

/// Verified bytes by position, the least recently used dropped first, each fetched by one caller at a time.
struct Cache {
    budget: usize,
    state: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    slots: HashMap<u32, Slot>,
    bytes: usize,
    clock: u64,
}

#[derive(Default)]
struct Slot {
    cell: Arc<Mutex<Option<Arc<Vec<u8>>>>>,
    used: u64,
    /// 0 until the bytes are here.
    bytes: usize,
}

impl Cache {
    fn new(budget: usize) -> Self {
        Self { budget, state: Mutex::default() }
    }

    fn get_or_fetch(
        &self,
        position: u32,
        fetch: impl FnOnce() -> Result<Vec<u8>, ReadError>,
    ) -> Result<Arc<Vec<u8>>, ReadError> {
        let cell = {
            let mut state = self.state.lock().expect("no panic under the lock");
            state.clock += 1;
            let clock = state.clock;
            let slot = state.slots.entry(position).or_default();
            slot.used = clock;
            slot.cell.clone()
        };
        // A second caller for the same object waits here and then finds it.
        let mut content = cell.lock().expect("no panic under the lock");
        if let Some(data) = &*content {
            return Ok(data.clone());
        }
        let data = match fetch() {
            Ok(data) => Arc::new(data),
            Err(error) => {
                self.state.lock().expect("no panic under the lock").slots.remove(&position);
                return Err(error);
            }
        };
        *content = Some(data.clone());
        self.charge(position, data.len());
        Ok(data)
    }

    fn charge(&self, position: u32, bytes: usize) {
        let mut state = self.state.lock().expect("no panic under the lock");
        let Some(slot) = state.slots.get_mut(&position) else { return };
        slot.bytes = bytes;
        state.bytes += bytes;
        // Rarely more than a few slots to look through: entries leave as fast as they come.
        while state.bytes > self.budget {
            let oldest = state.slots.iter().filter(|(other, slot)| **other != position && slot.bytes > 0);
            let Some(oldest) = oldest.min_by_key(|(_, slot)| slot.used).map(|(oldest, _)| *oldest) else { break };
            state.bytes -= state.slots.remove(&oldest).map_or(0, |slot| slot.bytes);
        }
    }
}
