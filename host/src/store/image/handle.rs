//! One image of a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;

use super::config::ImageConfig;
use super::index::ImageIndex;
use super::tree::Tree;
use crate::store::objects::source::ObjectSource;

/// An image: a manifest (an EROFS image that holds the metadata of all its files) and the objects it names.
#[derive(Clone, Debug)]
pub struct Image {
    /// The fs-verity digest of the manifest.
    pub id: ObjectId,
    /// The name it was found by.
    pub name: Option<String>,
    /// The manifest's file.
    pub manifest: PathBuf,
    /// Its objects.
    pub index: Arc<ImageIndex>,
    /// How it wants to be run, if it came from an OCI image.
    pub config: Option<ImageConfig>,
}

impl Image {
    /// The files in it, read from the manifest without mounting it.
    ///
    /// # Errors
    /// If the manifest cannot be read or does not match [`Image::id`].
    pub fn tree(&self) -> Result<Tree> {
        let manifest = std::fs::read(&self.manifest)
            .with_context(|| format!("cannot read the manifest {}", self.manifest.display()))?;
        Tree::new(&self.id, manifest)
    }

    /// The whole content of one file, see [`Tree::read_file`].
    ///
    /// # Errors
    /// As [`Image::tree`] and [`Tree::read_file`].
    pub fn read_file(&self, objects: &dyn ObjectSource, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        self.tree()?.read_file(objects, path)
    }
}

/// One line of a listing.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    /// The fs-verity digest of the manifest.
    pub id: ObjectId,
    /// Its names, sorted; none for an image that garbage collection will take.
    pub names: Vec<String>,
    /// The manifest's size in bytes.
    pub manifest_bytes: u64,
    /// How many objects it has.
    pub objects: u64,
    /// The sizes of its objects together, in bytes.
    pub object_bytes: u64,
    /// Its processor architecture as OCI names it, if it says.
    pub architecture: Option<String>,
}
