//! A commit: the manifest of an image with the changes of a layer.

use std::fs;
use std::io::Read;

use anyhow::{Context, Result};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::Repository;
use lazyroot_proto::{Algorithm, ObjectId};
use rustix::fs::CWD;

use super::layer;
use super::repository::{explain, object_id};
use crate::store::repository::store::Store;

/// Writes the image `base` with the changes in `layer`, and all to the disk; see [`Store::commit`].
pub(in crate::store) fn commit(store: &Store, base: &ObjectId, layer: impl Read) -> Result<ObjectId> {
    let committed = match store.algorithm() {
        Algorithm::Sha256 => commit_with::<Sha256HashValue>(store, base, layer),
        Algorithm::Sha512 => commit_with::<Sha512HashValue>(store, base, layer),
    };
    committed.map_err(|error| explain(error, store))
}

fn commit_with<Hash: FsVerityHashValue>(store: &Store, base: &ObjectId, layer: impl Read) -> Result<ObjectId> {
    let repository = Repository::<Hash>::open_path(CWD, store.path())?;
    repository.ensure_writable()?;
    let manifest = fs::read(store.manifest(base)).with_context(|| format!("cannot read the manifest of {base}"))?;
    let tree = layer::merge(&repository, &manifest, layer)?;
    let id = tree.commit_image(&repository, None)?;
    repository.sync()?;
    Ok(object_id(&id))
}
