//! The images that a server serves: a session may read the objects of its own image and nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, RwLock};

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;

use super::{Memory, ProfileUse};
use crate::store::{Image, ImageConfig, ImageName, Object, ObjectSource, Store};

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
}

impl ServedImage {
    /// Opens an image of the store for serving.
    pub fn open(image: &Image, source: Arc<dyn ObjectSource>) -> Result<Self> {
        let manifest = File::open(&image.manifest)
            .with_context(|| format!("cannot open the manifest {}", image.manifest.display()))?;
        let manifest_size = manifest.metadata()?.len();
        let index = image.index.clone();
        let (name, config) = (image.name.clone(), image.config.clone());
        let index_bytes = index.to_bytes();
        Ok(Self { id: image.id, name, config, index_bytes, index, source, manifest, manifest_size, memory: None })
    }

    /// From here on what guests read is remembered, and used for the next ones.
    pub fn with_memory(self, memory: Memory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// The object with this id, if the image has it.
    pub fn object(&self, id: &ObjectId) -> Option<Object> {
        let (id, size) = self.index.get(self.index.position(id)?)?;
        Some(Object { id, size })
    }

    /// Fills `buffer` from byte `offset` of the manifest.
    pub fn read_manifest(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.manifest.read_exact_at(buffer, offset)
    }
}

/// Which images there are. Images of a store are opened when a guest first asks.
pub struct Catalog {
    open: RwLock<HashMap<ObjectId, Arc<ServedImage>>>,
    store: Option<Store>,
}

impl Catalog {
    /// Exactly these images.
    pub fn of(images: impl IntoIterator<Item = ServedImage>) -> Self {
        let open = images.into_iter().map(|image| (image.id, Arc::new(image))).collect();
        Self { open: RwLock::new(open), store: None }
    }

    /// Every image of a store, those imported later included.
    pub fn whole(store: Store) -> Self {
        Self { open: RwLock::default(), store: Some(store) }
    }

    /// The image that another lazyroot asks for by name, digest or source. May block, as long as an import takes.
    pub(super) fn find(&self, reference: &str) -> Result<Option<Arc<ServedImage>>> {
        let Some(store) = &self.store else {
            let name = reference.parse::<ImageName>().map(|name| name.to_string()).ok();
            let is_meant = |image: &&Arc<ServedImage>| {
                image.name.as_ref().is_some_and(|own| own == reference || name.as_ref() == Some(own))
                    || image.id.to_string() == reference
                    || image.id.to_hex() == reference
            };
            return Ok(self.open.read().expect("no panic under the lock").values().find(is_meant).cloned());
        };
        let image = store.find(reference)?;
        image.map(|image| ServedImage::open(&image, store.source()).map(Arc::new)).transpose()
    }

    /// Where an object of any of the images is read.
    pub(super) fn source_of(&self, id: &ObjectId) -> Option<Arc<dyn ObjectSource>> {
        if let Some(store) = &self.store {
            return Some(store.source());
        }
        let open = self.open.read().expect("no panic under the lock");
        open.values().find(|image| image.index.position(id).is_some()).map(|image| image.source.clone())
    }

    /// The image with this manifest digest, if it is served. May block.
    pub(super) fn get(&self, id: &ObjectId) -> Option<Arc<ServedImage>> {
        if let Some(image) = self.open.read().expect("no panic under the lock").get(id) {
            return Some(image.clone());
        }
        let store = self.store.as_ref()?;
        let open = |image: Image| {
            let memory = Memory::new(store, &image.id, ProfileUse::Follow);
            Ok(ServedImage::open(&image, store.source())?.with_memory(memory))
        };
        let image = store.resolve(&id.to_string()).and_then(open);
        match image {
            Ok(image) => {
                let mut open = self.open.write().expect("no panic under the lock");
                Some(open.entry(*id).or_insert_with(|| Arc::new(image)).clone())
            }
            Err(error) => {
                tracing::warn!("cannot serve image {id}: {error:#}");
                None
            }
        }
    }
}
