//! What is in a store, all images together.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::entries;
use serde::Serialize;

use super::pins::PinRecord;
use crate::store::repository::store::Store;

/// Sums over a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StoreStats {
    /// Images, those without a name included.
    pub images: u64,
    /// Names.
    pub names: u64,
    /// Objects in the store, manifests included.
    pub objects: u64,
    /// Their sizes together, in bytes.
    pub object_bytes: u64,
    /// What they take on the disk, in bytes.
    pub disk_bytes: u64,
    /// The sizes of every image's objects, counted for each image that has them.
    pub image_bytes: u64,
    /// The same, an object that several images have counted once.
    pub distinct_bytes: u64,
    /// `image_bytes` by `distinct_bytes`: how many times as much as many copies would take.
    pub dedup_ratio: f64,
    /// Objects that more than one image has.
    pub shared_objects: u64,
    /// Bytes of objects that no image has: what garbage collection may free.
    pub unreferenced_bytes: u64,
    /// What uses which image now.
    pub in_use: Vec<PinRecord>,
}

impl Store {
    /// Adds up what there is. Reads the indexes of all images and looks at every object's file.
    ///
    /// # Errors
    /// If the store cannot be read. An image whose index can neither be read nor made is left out, with a warning.
    pub fn stats(&self) -> Result<StoreStats> {
        let mut stats = StoreStats { names: self.names()?.len() as u64, in_use: self.pins()?, ..StoreStats::default() };
        // How many images have it.
        let mut known: HashMap<ObjectId, u32> = HashMap::new();
        for image in self.ids()? {
            stats.images += 1;
            known.insert(image, 1);
            let index = match self.index(&image).and_then(|index| index.read()) {
                Ok(index) => index,
                Err(error) => {
                    tracing::warn!("{error:#}");
                    continue;
                }
            };
            for (id, size) in entries(&index)? {
                stats.image_bytes = stats.image_bytes.saturating_add(size);
                let images = known.entry(id).or_default();
                *images += 1;
                match *images {
                    1 => stats.distinct_bytes = stats.distinct_bytes.saturating_add(size),
                    2 => stats.shared_objects += 1,
                    _ => {}
                }
            }
        }
        for id in self.object_ids()? {
            let path = self.path().join("objects").join(id.object_path());
            // It may be collected this very moment.
            let Ok(meta) = fs::symlink_metadata(path) else { continue };
            stats.objects += 1;
            stats.object_bytes += meta.len();
            // In units of 512 bytes (stat(2)).
            stats.disk_bytes += meta.blocks() * 512;
            if !known.contains_key(&id) {
                stats.unreferenced_bytes += meta.len();
            }
        }
        stats.dedup_ratio = match stats.distinct_bytes {
            0 => 1.0,
            distinct => stats.image_bytes as f64 / distinct as f64,
        };
        Ok(stats)
    }
}
