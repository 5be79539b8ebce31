//! The images that a server serves: a session may read the objects of its own image and nothing else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, RwLock, Weak};

use anyhow::{Context, Result};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{ObjectId, Verified};

use super::{Memory, ProfileUse};
use crate::store::objects::lru::Recent;
use crate::store::{Image, ImageConfig, ImageName, Object, ObjectError, ObjectSource, Pin, Store, copy_nodes};

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
    pub memory: Option<Memory>,
    /// The level above the leaves, of large objects that were read last.
    branches: Mutex<Recent<Verified>>,
    /// Objects that turned out unreadable in the middle of a reply.
    broken: Mutex<HashSet<ObjectId>>,
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
            memory: None,
            branches: Mutex::new(Recent::new(BRANCHES_MEMORY)),
            broken: Mutex::default(),
            _pin: None,
        })
    }

    /// From here on what guests read is remembered, and used for the next ones.
    pub fn with_memory(self, memory: Memory) -> Self {
        Self { memory: Some(memory), ..self }
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
    pub(super) fn read_nodes(
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
    pub(super) fn broke(&self, id: ObjectId) {
        self.broken.lock().expect("no panic under the lock").insert(id);
    }

    /// Whether an object was noted so: it is read to the end before a reply begins, which can then be an error.
    pub(super) fn is_broken(&self, id: &ObjectId) -> bool {
        self.broken.lock().expect("no panic under the lock").contains(id)
    }

    /// Fills `buffer` from byte `offset` of the manifest.
    pub fn read_manifest(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.manifest.read_exact_at(buffer, offset)
    }
}

/// Which images there are. Opening one costs time that grows with it, so those that need not be open before a guest
/// asks are opened then, and closed when the last session about them is over.
pub struct Catalog {
    open: RwLock<HashMap<ObjectId, Weak<ServedImage>>>,
    others: Others,
}

/// Where images come from that are not open.
enum Others {
    /// They are always open.
    Open(Vec<Arc<ServedImage>>),
    One(ObjectId, Box<dyn Fn() -> Result<ServedImage> + Send + Sync>),
    Store(Store),
}

impl Catalog {
    /// Exactly these images.
    pub fn of(images: impl IntoIterator<Item = ServedImage>) -> Self {
        Self::new(Others::Open(images.into_iter().map(Arc::new).collect()))
    }

    /// This one image, opened with `open` when a guest asks.
    pub fn on_demand(id: ObjectId, open: impl Fn() -> Result<ServedImage> + Send + Sync + 'static) -> Self {
        Self::new(Others::One(id, Box::new(open)))
    }

    /// Every image of a store, those imported later included. They are pinned while they are open.
    pub fn whole(store: Store) -> Self {
        Self::new(Others::Store(store))
    }

    /// The image that another lazyroot asks for by name, digest or source. May block, as long as an import takes.
    pub(super) fn find(&self, reference: &str) -> Result<Option<Arc<ServedImage>>> {
        let Others::Store(store) = &self.others else {
            let name = reference.parse::<ImageName>().map(|name| name.to_string()).ok();
            let is_meant = |image: &&Arc<ServedImage>| {
                image.name.as_ref().is_some_and(|own| own == reference || name.as_ref() == Some(own))
                    || image.id.to_string() == reference
                    || image.id.to_hex() == reference
            };
            return Ok(self.always_open().iter().find(is_meant).cloned());
        };
        let image = store.find(reference)?;
        image.map(|image| ServedImage::open(&image, store.source()).map(Arc::new)).transpose()
    }

    /// Where an object of any of the images is read.
    pub(super) fn source_of(&self, id: &ObjectId) -> Option<Arc<dyn ObjectSource>> {
        if let Others::Store(store) = &self.others {
            return Some(store.source());
        }
        self.always_open().iter().find(|image| image.index.position(id).is_some()).map(|image| image.source.clone())
    }

    fn always_open(&self) -> &[Arc<ServedImage>] {
        match &self.others {
            Others::Open(images) => images,
            Others::One(..) | Others::Store(_) => &[],
        }
    }

    fn new(others: Others) -> Self {
        Self { open: RwLock::default(), others }
    }

    /// The image with this manifest digest, if it is served. Reads files if it is not open.
    pub(super) fn get(&self, id: &ObjectId) -> Option<Arc<ServedImage>> {
        if let Others::Open(images) = &self.others {
            return images.iter().find(|image| image.id == *id).cloned();
        }
        if let Some(image) = self.open.read().expect("no panic under the lock").get(id).and_then(Weak::upgrade) {
            return Some(image);
        }
        // Under the lock: of many guests that ask at once, one opens it.
        let mut open = self.open.write().expect("no panic under the lock");
        if let Some(image) = open.get(id).and_then(Weak::upgrade) {
            return Some(image);
        }
        let image = match &self.others {
            Others::One(one, open) if one == id => open(),
            Others::Store(store) => open_pinned(store, id),
            Others::Open(_) | Others::One(..) => return None,
        };
        match image {
            Ok(image) => {
                let image = Arc::new(image);
                open.retain(|_, image| image.strong_count() > 0);
                open.insert(*id, Arc::downgrade(&image));
                Some(image)
            }
            Err(error) => {
                tracing::warn!("cannot serve image {id}: {error:#}");
                None
            }
        }
    }
}

fn open_pinned(store: &Store, id: &ObjectId) -> Result<ServedImage> {
    let image = store.resolve(&id.to_string())?;
    let pin = store.pin(&image, "a server")?;
    Ok(ServedImage::open(&image, store.source())?.with_memory(Memory::new(store, id, ProfileUse::Follow)).pinned(pin))
}
