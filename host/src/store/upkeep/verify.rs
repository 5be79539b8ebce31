//! Checking every object of a store, or of an image, against its digest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use anyhow::Result;
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::entries;
use serde::Serialize;

use crate::store::objects::check::check_objects;
use crate::store::progress::Progress;
use crate::store::repository::store::Store;

/// An object that is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Which object.
    pub object: String,
    /// What is wrong with it, for people.
    pub what: String,
    /// The files that have it as content, by image (a name, or the id of one without). An image's manifest is
    /// listed as a file without a path.
    pub files: BTreeMap<String, Vec<PathBuf>>,
    /// Whether it is sound again, after a repair.
    pub repaired: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Objects that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Those that are damaged or missing.
    pub damaged: Vec<Damage>,
    /// Why some were not repaired.
    pub not_repaired: Vec<String>,
}

impl Store {
    /// Reads every object of the store, or of one image, and checks it against its digest.
    ///
    /// # Errors
    /// If the store cannot be read, or there is no such image. What is damaged is no error.
    pub fn verify(&self, image: Option<&str>, progress: &Progress) -> Result<Verification> {
        let images = match image {
            Some(text) => vec![self.find_id(text)?],
            None => self.ids()?,
        };
        // What there is, and what there should be.
        let mut objects: BTreeMap<ObjectId, Option<u64>> = BTreeMap::new();
        if image.is_none() {
            objects.extend(self.object_ids()?.into_iter().map(|id| (id, None)));
        }
        for id in &images {
            objects.entry(*id).or_insert(None);
            match self.index(id).and_then(|index| index.read()) {
                Ok(index) => objects.extend(entries(&index)?.map(|(id, size)| (id, Some(size)))),
                // Its manifest is damaged, which the check of that finds.
                Err(error) => tracing::debug!("{error:#}"),
            }
        }
        let objects: Vec<(ObjectId, Option<u64>)> = objects.into_iter().collect();
        let (found, bytes) = check_objects(&self.objects, &objects, progress);
        let files = self.files_of(&found.keys().copied().collect())?;
        let damaged = found.into_iter().map(|(id, what)| Damage {
            object: id.to_string(),
            what,
            files: files.get(&id).cloned().unwrap_or_default(),
            repaired: false,
        });
        Ok(Verification { objects: objects.len() as u64, bytes, damaged: damaged.collect(), not_repaired: vec![] })
    }

    /// By object and image, the files that have these objects as content.
    fn files_of(&self, objects: &HashSet<ObjectId>) -> Result<HashMap<ObjectId, BTreeMap<String, Vec<PathBuf>>>> {
        let mut files: HashMap<ObjectId, BTreeMap<String, Vec<PathBuf>>> = HashMap::new();
        if objects.is_empty() {
            return Ok(files);
        }
        for image in self.ids()? {
            let name = self.names_of(&image)?.into_iter().next().unwrap_or_else(|| image.to_string());
            let mut add = |id: ObjectId, path: PathBuf| {
                files.entry(id).or_default().entry(name.clone()).or_default().push(path);
            };
            if objects.contains(&image) {
                add(image, PathBuf::new());
                continue;
            }
            if objects_needed(self, &image, objects).is_empty() {
                continue;
            }
            let tree = self.tree(&image)?;
            for entry in tree.walk("/")? {
                let entry = entry?;
                if entry.is_file()
                    && let Some(id) = tree.object(&entry)?
                    && objects.contains(&id)
                {
                    add(id, entry.path);
                }
            }
        }
        Ok(files)
    }
}

/// Which of these objects an image needs.
pub(super) fn objects_needed(store: &Store, image: &ObjectId, objects: &HashSet<ObjectId>) -> Vec<ObjectId> {
    if objects.contains(image) {
        // With its manifest damaged, who knows; the index may be there still.
        let index = store.index(image).and_then(|index| index.read()).unwrap_or_default();
        let needed = entries(&index).map(|e| e.map(|(id, _)| id).filter(|id| objects.contains(id)).collect());
        return [needed.unwrap_or_else(|_| Vec::new()), vec![*image]].concat();
    }
    let Ok(index) = store.index(image).and_then(|index| index.read()) else { return vec![] };
    let Ok(index) = entries(&index) else { return vec![] };
    index.map(|(id, _)| id).filter(|id| objects.contains(id)).collect()
}
