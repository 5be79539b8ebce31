//! Garbage collection: removing what no named or used image needs.
//!
//! composefs' own knows nothing of what is in use, fails at the first file that is not its own, and leaves links to
//! nothing if it is killed. This one removes in an order that can be ended anywhere: first what leads to an object,
//! then the object. Those who only read are never held up; an import and a collection wait for each other.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::entries;
use serde::Serialize;

use crate::store::files::list;
use crate::store::image::index;
use crate::store::repository::store::Store;
use crate::store::write::composefs;
use crate::store::write::request::CollectionLock;

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CollectionReport {
    /// Ids of images that nothing names or uses.
    pub images: Vec<String>,
    /// Objects that no image needs, manifests among them.
    pub objects: u64,
    /// What other files were removed: indexes, leaves, streams of OCI layers.
    pub files: u64,
    /// Space freed on the disk, in bytes. Objects that another program still links (podman) free none.
    pub freed_bytes: u64,
    /// Images that have no name and stay because they are in use: id, and by what.
    pub in_use: BTreeMap<String, Vec<String>>,
    /// Files in the repository's `objects` folder that are no objects. They stay.
    pub foreign: Vec<PathBuf>,
}

/// Whether anything is really removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Remove it.
    Really,
    /// Only say what would be removed.
    DryRun,
}

impl Store {
    /// Removes what no named or used image needs. Waits for an import that is under way.
    ///
    /// # Errors
    /// If the store cannot be read or written, or it cannot be told what a named image needs, since its manifest is
    /// damaged; nothing is removed then.
    pub fn collect(&self, how: Collect) -> Result<CollectionReport> {
        let lock = match how {
            Collect::Really => CollectionLock::Exclusive,
            Collect::DryRun => CollectionLock::Shared,
        };
        composefs::locked_for_collection(self, lock, |live| Collection::new(self, how, live)?.run())
    }
}

struct Collection<'a> {
    store: &'a Store,
    how: Collect,
    collected: CollectionReport,
    /// Objects that stay: at first those that named OCI streams lead to.
    live: HashSet<ObjectId>,
    /// Images that stay.
    images: HashSet<ObjectId>,
}

impl<'a> Collection<'a> {
    /// Finds out what stays.
    fn new(store: &'a Store, how: Collect, live: HashSet<ObjectId>) -> Result<Self> {
        let mut this = Self { store, how, collected: CollectionReport::default(), live, images: HashSet::new() };
        for (name, id) in store.names()? {
            match fs::symlink_metadata(store.manifest(&id)) {
                Ok(_) => this.keep(&id)?,
                Err(_) => tracing::warn!("the name {name} leads to no image: import it again, or remove it"),
            }
        }
        Ok(this)
    }

    /// An image stays, and all that it needs.
    fn keep(&mut self, id: &ObjectId) -> Result<()> {
        if self.images.insert(*id) {
            self.live.insert(*id);
            let index = self.store.index(id).and_then(|index| index.read());
            let index = index.with_context(|| {
                format!("cannot tell what image {id} needs, so nothing is removed; import it again, or remove it")
            })?;
            self.live.extend(entries(&index)?.map(|(id, _)| id));
        }
        Ok(())
    }

    fn run(mut self) -> Result<CollectionReport> {
        self.keep_used()?;
        let garbage: Vec<ObjectId> = self.store.ids()?.into_iter().filter(|id| !self.images.contains(id)).collect();
        let mut links = Vec::new();
        for id in garbage {
            // An image that only an OCI image's streams lead to is composefs' own.
            if self.live.contains(&id) {
                self.keep(&id)?;
                continue;
            }
            let link = self.store.manifest(&id);
            links.push((id, fs::read_link(&link)?));
            self.remove(&link)?;
        }
        // Who pinned an image before its link was gone may use it; who comes now finds none.
        let taken: HashSet<ObjectId> = links.iter().map(|(id, _)| *id).collect();
        for id in self.pinned()?.into_keys().filter(|id| taken.contains(id)) {
            if let (Some((_, target)), Collect::Really) = (links.iter().find(|(taken, _)| *taken == id), self.how) {
                std::os::unix::fs::symlink(target, self.store.manifest(&id))?;
            }
            self.keep(&id)?;
        }
        for (id, _) in links.into_iter().filter(|(id, _)| !self.images.contains(id)).collect::<Vec<_>>() {
            self.collected.images.push(id.to_string());
        }
        self.own_files()?;
        self.streams()?;
        self.objects()?;
        Ok(self.collected)
    }

    fn pinned(&self) -> Result<BTreeMap<ObjectId, Vec<String>>> {
        let mut pinned: BTreeMap<ObjectId, Vec<String>> = BTreeMap::new();
        for pin in self.store.pins()? {
            let id = pin.image.parse().context("a pin names no image")?;
            pinned.entry(id).or_default().push(pin.shown());
        }
        Ok(pinned)
    }

    fn keep_used(&mut self) -> Result<()> {
        for (id, users) in self.pinned()? {
            if !self.images.contains(&id) && fs::symlink_metadata(self.store.manifest(&id)).is_ok() {
                self.keep(&id)?;
                self.collected.in_use.insert(id.to_string(), users);
            }
        }
        Ok(())
    }

    /// lazyroot's own files about images, names and objects that are gone.
    fn own_files(&mut self) -> Result<()> {
        let files = &self.store.files;
        for folder in index::FOLDERS {
            for path in list(&files.path(folder))? {
                let image = name_of(&path).and_then(|name| name.parse().ok());
                if image.is_none_or(|image: ObjectId| !self.images.contains(&image)) {
                    self.remove_own(&path)?;
                }
            }
        }
        let names: HashSet<PathBuf> =
            self.store.names()?.into_iter().map(|(name, _)| files.path("refs").join(name)).collect();
        let mut todo = vec![files.path("refs")];
        while let Some(dir) = todo.pop() {
            for path in list(&dir)? {
                if path.is_dir() {
                    todo.push(path);
                } else if !names.contains(&path) {
                    self.remove_own(&path)?;
                }
            }
        }
        let leaves = files.path("leaves");
        for dir in list(&leaves)? {
            for path in list(&dir)? {
                let id = name_of(&dir).zip(name_of(&path)).and_then(|(dir, name)| format!("{dir}{name}").parse().ok());
                if id.is_none_or(|id: ObjectId| !self.live.contains(&id)) {
                    self.remove_own(&path)?;
                }
            }
        }
        if self.how == Collect::Really {
            self.store.files.sweep();
        }
        Ok(())
    }

    /// What composefs keeps of OCI images that have no name any more, and names that lead to nothing.
    fn streams(&mut self) -> Result<()> {
        let streams = self.store.path().join("streams");
        for path in list(&streams)? {
            let Ok(target) = fs::read_link(&path) else { continue };
            if object_of_link(&target).is_some_and(|id| !self.live.contains(&id)) {
                self.remove_own(&path)?;
            }
        }
        let mut todo = vec![streams.join("refs")];
        while let Some(dir) = todo.pop() {
            for path in list(&dir)? {
                let meta = fs::symlink_metadata(&path)?;
                if meta.is_dir() {
                    todo.push(path);
                } else if meta.is_symlink() && !path.exists() {
                    self.remove_own(&path)?;
                }
            }
        }
        Ok(())
    }

    fn objects(&mut self) -> Result<()> {
        for dir in list(&self.store.path().join("objects"))? {
            let byte = name_of(&dir).filter(|name| name.len() == 2).and_then(|name| u8::from_str_radix(name, 16).ok());
            let Some(byte) = byte.filter(|_| dir.is_dir()) else {
                self.collected.foreign.push(dir);
                continue;
            };
            for path in list(&dir)? {
                let name = path.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes);
                match name.and_then(|name| ObjectId::from_object_path(byte, name)) {
                    Some(id) if self.live.contains(&id) => {}
                    Some(id) if id.algorithm() == self.store.algorithm() => {
                        self.collected.objects += 1;
                        self.remove(&path)?;
                    }
                    _ => self.collected.foreign.push(path),
                }
            }
        }
        Ok(())
    }

    fn remove_own(&mut self, path: &Path) -> Result<()> {
        self.collected.files += 1;
        self.remove(path)
    }

    fn remove(&mut self, path: &Path) -> Result<()> {
        let meta = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            meta => meta.with_context(|| format!("cannot look at {}", path.display()))?,
        };
        if self.how == Collect::Really {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        if meta.nlink() == 1 {
            // In units of 512 bytes, whatever the file system's block size (stat(2)).
            self.collected.freed_bytes += meta.blocks() * 512;
        }
        Ok(())
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The object that a link `../objects/ab/cdef...` leads to.
fn object_of_link(target: &Path) -> Option<ObjectId> {
    let name = name_of(target)?;
    let dir = name_of(target.parent()?)?;
    format!("{dir}{name}").parse().ok()
}
