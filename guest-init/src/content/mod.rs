//! What an image's objects contain: fetched over [`crate::link`] and checked against their digests.
//!
//! Small objects travel whole. Of large ones the ranges that are read are fetched, and the Merkle tree nodes that prove
//! them. What leaves this folder is `Verified`, a type that only a check against a digest makes. The image file that
//! EROFS is mounted from lives here, too: it is made of the verified manifest and of objects.
//!
//! Nothing here decides what to fetch early: that is [`crate::ahead`], which uses this folder.

pub mod cache;
pub mod erofs;
pub mod error;
pub mod image_file;
pub mod merkle;
pub mod metadata;
pub mod object;
pub mod small;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lazyroot_proto::frame::{EventKind, MAX_READ};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::{Extent, Origin};
use lazyroot_proto::verified::{Unverified, Verified};

use crate::clock::monotonic_now;
use crate::complain::complain;
use crate::link::Link;
use crate::link::recorder::{Recorder, Stopwatch};
use error::{ReadError, ReadResult};
use merkle::MerkleTrees;
use object::{LargeObject, Object, ObjectPart, SmallObject, cut};
use small::SmallObjects;

/// The objects of one image, read and verified.
pub struct Content {
    link: Arc<Link>,
    index: ObjectIndex,
    recorder: Arc<Recorder>,
    small: SmallObjects,
    trees: MerkleTrees,
    /// Objects whose failure was reported, by position.
    failures: Mutex<HashSet<u32>>,
}

impl Content {
    /// The objects in `index` (already verified), read through `link`. Reads are counted by `recorder`.
    pub fn new(link: Arc<Link>, index: ObjectIndex, recorder: Arc<Recorder>) -> Self {
        Self {
            small: SmallObjects::new(link.clone(), recorder.clone()),
            trees: MerkleTrees::new(link.clone()),
            link,
            index,
            recorder,
            failures: Mutex::default(),
        }
    }

    /// The image's object index.
    pub fn index(&self) -> &ObjectIndex {
        &self.index
    }

    /// The session with the host.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// What counts reads and tells the host of them.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// The small objects.
    pub fn small(&self) -> &SmallObjects {
        &self.small
    }

    /// The Merkle trees of the large objects.
    pub fn trees(&self) -> &MerkleTrees {
        &self.trees
    }

    /// Reads a part of an object, for a program that waits for it since `stopwatch` started: from the cache, from what is
    /// on its way, or from the host.
    ///
    /// # Errors
    /// If the host does not deliver, or what it delivers is not what the digest names. The first failure of an object is
    /// reported here (on the console) and to the host: the kernel asks for every page of a failed read again.
    pub fn read(&self, part: &ObjectPart, stopwatch: Stopwatch) -> ReadResult {
        let read = match part.object {
            Object::Small(object) => self
                .read_small(&object, stopwatch)
                .map(|whole| cut(whole, part.bytes.start as usize..part.bytes.end as usize)),
            Object::Large(object) => {
                let read = self.read_large(&object, &part.bytes);
                self.record_read(stopwatch, part.extent(), part.len(), Origin::Host, read.is_ok());
                read
            }
        };
        if let Err(error) = &read {
            self.report(part.object.position(), error);
        }
        read
    }

    fn read_small(&self, object: &SmallObject, stopwatch: Stopwatch) -> ReadResult {
        let SmallObject { position, size, .. } = *object;
        let origin = self.small.claim(position).unwrap_or(Origin::Host);
        let read = self.small.get(object, Origin::Cache);
        if origin == Origin::Profile {
            self.recorder.count(|counters| counters.profile_used_bytes += size);
        }
        // What the kernel asks for again says nothing new.
        if origin != Origin::Cache {
            self.record_read(stopwatch, Extent::around(position, 0, size), size, origin, read.is_ok());
        }
        read
    }

    fn read_large(&self, object: &LargeObject, bytes: &Range<u64>) -> ReadResult {
        let blocks = object.blocks_around(bytes);
        if blocks.is_empty() {
            return Ok(Verified::empty());
        }
        let failed = |error| ReadError::Link { id: object.id, error };
        // What proves the range and the range itself are under way together.
        self.trees.request(object, blocks.clone());
        let wire = Stopwatch::start();
        let len = |offset: u64| (blocks.end - offset).min(MAX_READ.into()) as u32;
        let ticket = self.link.request_range(object.id, blocks.start, len(blocks.start));
        let mut data = self.link.redeem(ticket).map_err(failed)?;
        while blocks.start + (data.len() as u64) < blocks.end {
            let offset = blocks.start + data.len() as u64;
            let more = self.link.read(object.id, offset, len(offset)).map_err(failed)?;
            data = Unverified::concat(&[data, more]);
        }
        self.recorder.count(|counters| counters.wire.add(wire.elapsed()));
        let verified = self.verify_range(object, blocks.start, data)?;
        Ok(cut(verified, (bytes.start - blocks.start) as usize..(bytes.end - blocks.start) as usize))
    }

    /// Checks blocks of a large object from byte `offset` on.
    ///
    /// # Errors
    /// If they are other bytes, or the nodes that say so cannot be had.
    pub fn verify_range(&self, object: &LargeObject, offset: u64, data: Unverified) -> ReadResult {
        self.recorder.count(|counters| counters.verified_bytes += data.len() as u64);
        self.trees.verify(object, offset, data)
    }

    /// Records a program's read of `bytes` in `extent`, for which it has waited since `stopwatch` started.
    pub fn record_read(&self, stopwatch: Stopwatch, extent: Option<Extent>, bytes: u64, origin: Origin, ok: bool) {
        let Some(extent) = extent.filter(|_| bytes > 0) else { return };
        let (bytes, origin) = if ok { (bytes, origin) } else { (0, Origin::Failed) };
        self.recorder.read(stopwatch, extent, bytes, origin);
    }

    /// Reports once that an object cannot be read.
    fn report(&self, position: u32, error: &ReadError) {
        if self.failures.lock().expect("no panic under the lock").insert(position) {
            complain(error);
            self.link.send_event(EventKind::Warning, monotonic_now(), &error.to_string());
        }
    }
}
