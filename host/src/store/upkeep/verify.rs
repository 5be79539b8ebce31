//! Checking objects against their digests, and mending those that are damaged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::entries;
use serde::Serialize;

use crate::store::image::remote_images::Elsewhere;
use crate::store::objects::checked_copy;
use crate::store::objects::source::{Object, ObjectError};
use crate::store::progress::Progress;
use crate::store::repo::{Rehash, Store};
use crate::store::write::source::{Import, Source};

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
pub struct Verified {
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
    pub fn verify(&self, image: Option<&str>, progress: &Progress) -> Result<Verified> {
        let images = match image {
            Some(text) => vec![self.find_id(text)?],
            None => self.ids()?,
        };
        // What there is, and what there should be.
        let mut objects: BTreeMap<ObjectId, Option<u64>> = BTreeMap::new();
        if image.is_none() {
            objects.extend(self.present()?.into_iter().map(|id| (id, None)));
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
        let (found, bytes) = self.check_objects(&objects, progress);
        let files = self.files_of(&found.keys().copied().collect())?;
        let damaged = found.into_iter().map(|(id, what)| Damage {
            object: id.to_string(),
            what,
            files: files.get(&id).cloned().unwrap_or_default(),
            repaired: false,
        });
        Ok(Verified { objects: objects.len() as u64, bytes, damaged: damaged.collect(), not_repaired: vec![] })
    }

    /// Mends what [`Store::verify`] found: fetches it from upstreams, if there are any, and imports the images that need
    /// the rest again from where they came from. An object is replaced once a sound one is there; where there is none,
    /// the damaged one stays.
    ///
    /// # Errors
    /// If the store cannot be written. That an object could not be mended is no error, and noted.
    pub fn repair(&self, verified: &mut Verified, progress: &Progress) -> Result<()> {
        self.ensure_changeable()?;
        let damaged: HashSet<ObjectId> =
            verified.damaged.iter().filter_map(|damage| damage.object.parse().ok()).collect();
        let _lock = self.lock()?;
        let mut left = damaged.clone();
        let mut not_fetched = Vec::new();
        if let Some(elsewhere) = self.elsewhere() {
            for image in self.ids()? {
                self.fetch_again(elsewhere, &image, &mut left, &mut not_fetched);
            }
        }
        for id in self.ids()? {
            let needed = self.needs_any(&id, &left);
            if needed.is_empty() {
                continue;
            }
            if let Err(error) = self.repair_image(&id, &needed, progress) {
                verified.not_repaired.push(format!("{error:#}"));
            }
            for object in needed {
                if self.check_object(&object, None).is_ok() {
                    left.remove(&object);
                }
            }
        }
        let still = not_fetched.into_iter().filter(|(id, _)| left.contains(id));
        verified.not_repaired.extend(still.map(|(_, why)| why));
        for damage in &mut verified.damaged {
            damage.repaired = damage.object.parse().is_ok_and(|id: ObjectId| !left.contains(&id));
        }
        Ok(())
    }

    /// Fetches what an image needs of these objects from upstreams, and takes out what is sound then. Adds why others
    /// are not.
    fn fetch_again(
        &self,
        elsewhere: &Elsewhere,
        image: &ObjectId,
        left: &mut HashSet<ObjectId>,
        not_fetched: &mut Vec<(ObjectId, String)>,
    ) {
        let mut fetch = |id: ObjectId, left: &mut HashSet<ObjectId>| match self.fetch_object(elsewhere, image, &id) {
            Ok(()) => drop(left.remove(&id)),
            Err(error) => not_fetched.push((id, format!("{error:#}"))),
        };
        // Without the manifest it may not be known what else is needed.
        if left.contains(image) {
            fetch(*image, left);
        }
        for id in self.needs_any(image, left).into_iter().filter(|id| id != image) {
            fetch(id, left);
        }
    }

    /// Fetches an object of an image, or its manifest, and puts it in the place of the one that is here.
    fn fetch_object(&self, elsewhere: &Elsewhere, image: &ObjectId, id: &ObjectId) -> Result<()> {
        let builder = &mut tempfile::Builder::new();
        let mut file = builder.permissions(fs::Permissions::from_mode(0o644)).tempfile_in(self.temporary_dir()?)?;
        if id == image {
            let found = elsewhere.find(&image.to_string(), false)?;
            let found = found.with_context(|| format!("no upstream has the image {image}"))?;
            file.write_all(&fs::read(found.manifest)?)?;
        } else {
            let index = self.index(image)?.load()?;
            let size = index.position(id).and_then(|position| index.get(position)).map(|(_, size)| size);
            let object = Object { id: *id, size: size.context("it is in no index")? };
            checked_copy::copy(elsewhere.cached.as_ref(), &object, &mut file)?;
        }
        file.as_file().sync_all()?;
        file.persist(self.path().join("objects").join(id.object_path()))?;
        // A folder may be as damaged as what is in it.
        self.check_object(id, None).map(drop).map_err(|why| anyhow!("object {id} was written again, and {why}"))
    }

    /// Which of these objects an image needs.
    fn needs_any(&self, image: &ObjectId, objects: &HashSet<ObjectId>) -> Vec<ObjectId> {
        if objects.contains(image) {
            // With its manifest damaged, who knows; the index may be there still.
            let index = self.index(image).and_then(|index| index.read()).unwrap_or_default();
            let needed = entries(&index).map(|e| e.map(|(id, _)| id).filter(|id| objects.contains(id)).collect());
            return [needed.unwrap_or_else(|_| Vec::new()), vec![*image]].concat();
        }
        let Ok(index) = self.index(image).and_then(|index| index.read()) else { return vec![] };
        let Ok(index) = entries(&index) else { return vec![] };
        index.map(|(id, _)| id).filter(|id| objects.contains(id)).collect()
    }

    fn repair_image(&self, image: &ObjectId, damaged: &[ObjectId], progress: &Progress) -> Result<()> {
        let names = self.names_of(image)?;
        let shown = names.first().cloned().unwrap_or_else(|| image.to_string());
        let source = names.iter().find_map(|name| self.source_of(image, name));
        let source = source.with_context(|| {
            format!("it is not known where image {shown} came from: import it again, which mends it too")
        })?;
        let source: Source = source.parse().with_context(|| format!("the source of image {shown}"))?;
        // An import takes what is there for good, so what is damaged makes way; it comes back if nothing better does.
        let aside = tempfile::Builder::new().prefix("").tempdir_in(self.temporary_dir()?)?;
        let object = |id: &ObjectId| self.path().join("objects").join(id.object_path());
        for id in damaged {
            let _ = fs::rename(object(id), aside.path().join(id.to_hex()));
        }
        let imported = Import { store: self, from: &source, rehash: Rehash::Changed, progress }.repair(&names);
        for id in damaged {
            if !object(id).exists() {
                let _ = fs::rename(aside.path().join(id.to_hex()), object(id));
            }
        }
        let imported = imported.with_context(|| format!("cannot mend image {shown}"))?;
        if imported != *image {
            return Err(anyhow!("image {shown} cannot be mended: {source} has changed since it was imported"));
        }
        Ok(())
    }

    /// Checks objects on all processors. The damaged ones and why, and how many bytes were read.
    pub(in crate::store) fn check_objects(
        &self,
        objects: &[(ObjectId, Option<u64>)],
        progress: &Progress,
    ) -> (BTreeMap<ObjectId, String>, u64) {
        let bar = progress.items("checking objects".to_owned(), Some(objects.len() as u64));
        let next = AtomicUsize::new(0);
        let found = Mutex::new((BTreeMap::new(), 0));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((id, size)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let checked = self.check_object(id, *size);
                        bar.inc(1);
                        let mut found = found.lock().expect("no panic under the lock");
                        match checked {
                            Ok(bytes) => found.1 += bytes,
                            Err(why) => drop(found.0.insert(*id, why)),
                        }
                    }
                });
            }
        });
        bar.finish_and_clear();
        found.into_inner().expect("no panic under the lock")
    }

    /// An object's size if its content matches its id, else what is wrong.
    fn check_object(&self, id: &ObjectId, size: Option<u64>) -> Result<u64, String> {
        match self.source.check(id) {
            Ok(found) if size.is_none_or(|size| size == found) => Ok(found),
            // Its content matches its id, so the index that claims another size is wrong.
            Ok(found) => Err(format!("it has {found} bytes and the manifest says {}", size.unwrap_or_default())),
            Err(ObjectError::NotFound(_)) => Err("it is missing".to_owned()),
            Err(ObjectError::Corrupt(_)) => Err("its content does not match its digest".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The ids of the files in `objects`.
    pub(in crate::store) fn present(&self) -> Result<Vec<ObjectId>> {
        let mut present = Vec::new();
        for byte in 0..=u8::MAX {
            let dir = self.path().join(format!("objects/{byte:02x}"));
            let Ok(entries) = fs::read_dir(dir) else { continue };
            for entry in entries {
                let name = entry?.file_name();
                let id = ObjectId::from_object_path(byte, name.as_encoded_bytes());
                present.extend(id.filter(|id| id.algorithm() == self.algorithm()));
            }
        }
        Ok(present)
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
            if self.needs_any(&image, objects).is_empty() {
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
