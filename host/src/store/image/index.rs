//! An image's object index: a file beside the repository, and what a launch needs to know of it without reading it.
//!
//! A launch tells the guest the index's digest and no more, so it must not cost what reading and hashing the index
//! costs, which grows with the image. The digest and a few sums are kept in a record of fixed size; the index itself
//! is read when a guest asks for it, and checked then. Whatever is damaged is computed again from the manifest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{ObjectId, verity};
use serde::{Deserialize, Serialize};

use super::tree::Tree;
use crate::store::files::Files;

/// The object index of an image of a store.
#[derive(Clone, Debug)]
pub struct ImageIndex {
    place: Place,
    id: ObjectId,
    objects: u64,
    total_bytes: u64,
}

/// Where an index is.
#[derive(Clone, Debug)]
enum Place {
    /// Beside the repository that has the image.
    Store { image: ObjectId, manifest: PathBuf, files: Files },
    /// Here: the image is elsewhere.
    Memory(Vec<u8>),
}

/// What is known of an index without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    id: String,
    objects: u64,
    object_bytes: u64,
}

/// The facts as they are on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    facts: Facts,
    /// fs-verity digest of the facts' JSON: a guest that is told a wrong digest does not boot.
    check: String,
}

impl ImageIndex {
    /// The index of the image with this id and manifest: what is remembered of it, or computed now.
    pub(in crate::store) fn open(files: &Files, image: ObjectId, manifest: PathBuf) -> Result<Self> {
        let facts = match read_facts(files, &image) {
            Some(facts) => facts,
            None => compute(files, &image, &manifest)?.1,
        };
        let id = facts.id.parse().expect("checked when it was read or made");
        let Facts { objects, object_bytes: total_bytes, .. } = facts;
        Ok(Self { place: Place::Store { image, manifest, files: files.clone() }, id, objects, total_bytes })
    }

    /// The index of an image that is not in the store.
    pub(in crate::store) fn in_memory(index: &ObjectIndex) -> Self {
        let bytes = index.to_bytes();
        Self {
            id: verity::digest(index.algorithm(), &bytes),
            objects: index.entries().len() as u64,
            total_bytes: index.total_bytes(),
            place: Place::Memory(bytes),
        }
    }

    /// The index's digest, as on the kernel command line.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// How many objects there are.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// The sizes of all objects together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The index's bytes, which match [`ImageIndex::id`].
    ///
    /// # Errors
    /// If both the index and the manifest are damaged or cannot be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        let (image, manifest, files) = match &self.place {
            Place::Store { image, manifest, files } => (image, manifest, files),
            Place::Memory(bytes) => return Ok(bytes.clone()),
        };
        match files.read(&index_name(image)) {
            Ok(bytes) if verity::digest(self.id.algorithm(), &bytes) == self.id => return Ok(bytes),
            Ok(_) => tracing::warn!("the object index of image {image} is damaged; making it again"),
            Err(error) => tracing::debug!("no object index of image {image}: {error}"),
        }
        let (bytes, facts) = compute(files, image, manifest)?;
        if facts.id != self.id.to_string() {
            bail!("the object index of image {image} was of another version of lazyroot; try again");
        }
        Ok(bytes)
    }

    /// The index itself.
    ///
    /// # Errors
    /// As [`ImageIndex::read`].
    pub fn load(&self) -> Result<ObjectIndex> {
        Ok(ObjectIndex::from_bytes(&self.read()?)?)
    }
}

/// Folders of files that are about one image and named by its id, below [`Files`].
pub(in crate::store) const FOLDERS: [&str; 6] = ["index", "facts", "config", "checked", "profiles", "traces"];

fn index_name(image: &ObjectId) -> String {
    format!("index/{}", image.to_hex())
}

fn facts_name(image: &ObjectId) -> String {
    format!("facts/{}", image.to_hex())
}

fn read_facts(files: &Files, image: &ObjectId) -> Option<Facts> {
    let record: Record = serde_json::from_slice(&files.read(&facts_name(image)).ok()?).ok()?;
    let id: ObjectId = record.facts.id.parse().ok()?;
    let sound = id.algorithm() == image.algorithm() && check(image, &record.facts) == record.check;
    sound.then_some(record.facts)
}

/// The image's own id is part of it: a record of another image is as wrong as a damaged one.
fn check(image: &ObjectId, facts: &Facts) -> String {
    let text = serde_json::to_vec(&(image.to_hex(), facts)).expect("strings and numbers");
    verity::digest(image.algorithm(), &text).to_string()
}

/// Makes the index from the manifest, and writes it and its facts down if the store can be written.
fn compute(files: &Files, image: &ObjectId, manifest: &Path) -> Result<(Vec<u8>, Facts)> {
    let content = fs::read(manifest)
        .with_context(|| format!("cannot read the manifest {}: import the image again", manifest.display()))?;
    let index =
        Tree::new(image, content)?.objects().with_context(|| format!("cannot read the manifest of image {image}"))?;
    let bytes = index.to_bytes();
    let facts = Facts {
        id: verity::digest(image.algorithm(), &bytes).to_string(),
        objects: index.entries().len() as u64,
        object_bytes: index.total_bytes(),
    };
    let record = Record { check: check(image, &facts), facts: facts.clone() };
    let written = files
        .write(&index_name(image), &bytes)
        .and_then(|()| files.write(&facts_name(image), &serde_json::to_vec(&record)?));
    if let Err(error) = written {
        tracing::debug!("the object index of {image} stays in memory: {error}");
    }
    Ok((bytes, facts))
}
