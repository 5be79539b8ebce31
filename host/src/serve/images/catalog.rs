//! The images that a server serves: a session may read the objects of its own image and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, RwLock, Weak};

use anyhow::Result;
use lazyroot_proto::ObjectId;

use super::boot_history::{BootHistory, ProfileUse};
use super::image::ServedImage;
use crate::store::{ImageName, ObjectSource, Store};

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
    pub(in crate::serve) fn find(&self, reference: &str) -> Result<Option<Arc<ServedImage>>> {
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
    pub(in crate::serve) fn source_of(&self, id: &ObjectId) -> Option<Arc<dyn ObjectSource>> {
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
    pub(in crate::serve) fn get(&self, id: &ObjectId) -> Option<Arc<ServedImage>> {
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
    Ok(ServedImage::open(&image, store.source())?
        .with_history(BootHistory::new(store, id, ProfileUse::Follow))
        .pinned(pin))
}
