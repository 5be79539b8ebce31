//! What is remembered of objects that were seen to match their digests, so that an import can tell one that was
//! changed since from one that was not, without reading either.
//!
//! Whoever writes to a file changes the time of its inode (ctime), which no program can set. So an object whose
//! inode and ctime are as they were when it was checked is as it was then, but for what a failing disk does
//! unasked: for that there is `lazyroot store verify`, and `image import --rehash`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use lazyroot_proto::{ObjectId, verity};

use crate::store::repository::store::Store;

/// The most images whose memory is looked through for the objects of a new one: the others' objects are read again.
const MOST_IMAGES: usize = 64;

/// Bytes of one entry: inode, seconds and nanoseconds of its ctime.
const ENTRY: usize = 20;

/// An object's file at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ObjectStamp {
    inode: u64,
    seconds: i64,
    nanoseconds: u32,
}

impl ObjectStamp {
    pub(super) fn of(meta: &std::fs::Metadata) -> Self {
        Self { inode: meta.ino(), seconds: meta.ctime(), nanoseconds: meta.ctime_nsec() as u32 }
    }

    /// Whether the file was made or written after the moment of `other`. Times are as coarse as the kernel's tick
    /// (1 to 10 ms): a file with the very time of `other` may have been written shortly before it.
    pub(super) fn is_after(&self, other: &ObjectStamp) -> bool {
        (self.seconds, self.nanoseconds) > (other.seconds, other.nanoseconds)
    }

    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.inode.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[16..].copy_from_slice(&self.nanoseconds.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            inode: u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")),
            seconds: i64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes")),
            nanoseconds: u32::from_le_bytes(bytes[16..ENTRY].try_into().expect("4 bytes")),
        }
    }
}

/// The stamps of an image's objects when they were last checked, in manifest order; `None` if that is not known.
pub(super) fn read(store: &Store, image: &ObjectId) -> Option<Vec<ObjectStamp>> {
    let bytes = store.files.read(&format!("checked/{}", image.to_hex())).ok()?;
    let (digest, stamps) = bytes.split_at_checked(image.algorithm().digest_len())?;
    let sound = stamps.len().is_multiple_of(ENTRY) && verity::digest(image.algorithm(), stamps).as_bytes() == digest;
    sound.then(|| stamps.chunks_exact(ENTRY).map(ObjectStamp::from_bytes).collect())
}

/// Remembers the stamps of an image's objects, in manifest order, its own first. They must be on disk.
pub(super) fn save(store: &Store, image: &ObjectId, stamps: &[ObjectStamp]) -> Result<()> {
    let stamps: Vec<u8> = stamps.iter().flat_map(|stamp| stamp.to_bytes()).collect();
    let digest = verity::digest(image.algorithm(), &stamps);
    Ok(store.files.write(&format!("checked/{}", image.to_hex()), &[digest.as_bytes(), &stamps].concat())?)
}

/// What is remembered of these objects in the memory of any image.
pub(super) fn of_any_image(store: &Store, objects: &[ObjectId]) -> HashMap<ObjectId, ObjectStamp> {
    let mut known = HashMap::new();
    let mut unknown: std::collections::HashSet<ObjectId> = objects.iter().copied().collect();
    for image in store.ids().unwrap_or_default().iter().take(MOST_IMAGES) {
        if unknown.is_empty() {
            break;
        }
        let Some(stamps) = read(store, image) else { continue };
        let Ok(index) = store.index(image).and_then(|index| index.read()) else { continue };
        let Ok(entries) = lazyroot_proto::index::entries(&index) else { continue };
        for (id, stamp) in std::iter::once(*image).chain(entries.map(|(id, _)| id)).zip(stamps) {
            if unknown.remove(&id) {
                known.insert(id, stamp);
            }
        }
    }
    known
}
