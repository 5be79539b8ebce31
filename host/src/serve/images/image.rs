//! An image that is served.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{ObjectId, Verified};

use super::boot_history::BootHistory;
use crate::store::objects::lru::WeightedLru;
use crate::store::{Image, ImageConfig, Object, ObjectError, ObjectSource, Pin, copy_nodes};
/// Memory for levels above leaves, in bytes: those of objects of 64 GiB under SHA-256.
const BRANCHES_MEMORY: usize = 4 << 20;

/// An image being served.
pub struct ServedImage {
    /// The manifest's digest.
    pub id: ObjectId,
    /// The objects that sessions about this image may read.
    pub index: Arc<ObjectIndex>,
    /// Where those objects come from.
    pub source: Arc<dyn ObjectSource>,
    /// The name it was found by.
    pub name: Option<String>,
    /// How it wants to be run.
    pub config: Option<ImageConfig>,
    manifest: File,
    /// Size of the EROFS manifest in bytes.
    pub manifest_size: u64,
    /// The index as it goes over the wire.
    pub index_bytes: Vec<u8>,
    /// Where what guests read is remembered, if it is.
    pub history: Option<BootHistory>,
    /// The level above the leaves, of large objects that were read last.
    branches: Mutex<WeightedLru<Verified>>,
    /// Objects that turned out unreadable in the middle of a reply.
    unreadable: Mutex<HashSet<ObjectId>>,
    _pin: Option<Pin>,
}

impl ServedImage {
    /// Opens an image of the store for serving.
    pub fn open(image: &Image, source: Arc<dyn ObjectSource>) -> Result<Self> {
        let manifest = File::open(&image.manifest)
            .with_context(|| format!("cannot open the manifest {}", image.manifest.display()))?;
        let manifest_size = manifest.metadata()?.len();
        let index_bytes = image.index.read()?;
        let index = Arc::new(ObjectIndex::from_bytes(&index_bytes)?);
        let (name, config) = (image.name.clone(), image.config.clone());
        Ok(Self {
            id: image.id,
            name,
            config,
            index,
            source,
            manifest,
            manifest_size,
            index_bytes,
            history: None,
            branches: Mutex::new(WeightedLru::new(BRANCHES_MEMORY)),
            unreadable: Mutex::default(),
            _pin: None,
        })
    }

    /// From here on what guests read is remembered, and used for the next ones.
    pub fn with_history(self, history: BootHistory) -> Self {
        Self { history: Some(history), ..self }
    }

    /// The same, and it stays in its store as long as it is open.
    pub fn pinned(self, pin: Option<Pin>) -> Self {
        Self { _pin: pin, ..self }
    }

    /// The object with this id, if the image has it.
    pub fn object(&self, id: &ObjectId) -> Option<Object> {
        let (id, size) = self.index.get(self.index.position(id)?)?;
        Some(Object { id, size })
    }

    /// Fills `buffer` from byte `offset` of a level of the object's Merkle tree, inside of which that lies.
    pub(in crate::serve) fn read_nodes(
        &self,
        object: &Object,
        level: u8,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ObjectError> {
        if level == 0 {
            return self.source.read_leaves(object, offset, buffer);
        }
        let mut nodes = self.branches(object)?;
        for _ in 1..level {
            nodes = nodes.block_hashes(object.id.algorithm());
        }
        copy_nodes(object, &nodes, offset, buffer)
    }

    /// The level above the object's leaves.
    fn branches(&self, object: &Object) -> Result<Verified, ObjectError> {
        let kept = || self.branches.lock().expect("no panic under the lock");
        let known = kept().get(&object.id);
        if let Some(branches) = known {
            return Ok(branches);
        }
        let branches = self.source.leaves(object)?.block_hashes(object.id.algorithm());
        kept().insert(object.id, branches.len(), branches.clone());
        Ok(branches)
    }

    /// Notes that an object could not be read to the end of a reply that had begun.
    pub(in crate::serve) fn note_unreadable(&self, id: ObjectId) {
        self.unreadable.lock().expect("no panic under the lock").insert(id);
    }

    /// Whether an object was noted so: it is read to the end before a reply begins, which can then be an error.
    pub(in crate::serve) fn is_unreadable(&self, id: &ObjectId) -> bool {
        self.unreadable.lock().expect("no panic under the lock").contains(id)
    }

    /// Fills `buffer` from byte `offset` of the manifest.
    pub fn read_manifest(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.manifest.read_exact_at(buffer, offset)
    }
}
