//! The functions of `composefs/mod.rs` for systems where composefs does not compile: repositories are written on Linux
//! alone.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lazyroot_proto::ObjectId;

use super::request::{CollectionLock, ImportRequest, Imported};
use crate::store::name::ImageName;
use crate::store::repository::store::Store;

/// A repository of SHA-256, as composefs describes it.
const META: &str = r#"{"version":1,"algorithm":"fsverity-sha256-12","features":{"compatible":[],"read-only-compatible":["v1_erofs"],"incompatible":[]},"erofs_formats":{"default":1}}"#;

/// Makes an empty repository as composefs would. Nothing is imported into it here; images come from upstreams.
pub(in crate::store) fn create(path: &Path) -> Result<()> {
    crate::home::private_dir(path)?;
    let mut meta = tempfile::NamedTempFile::new_in(path)?;
    meta.write_all(META.as_bytes())?;
    meta.persist(path.join("meta.json"))?;
    Ok(())
}

/// Returns in every process: there is no import that would start this program again.
pub fn serve_if_storage_helper() {}

/// podman keeps its images in a machine of its own, not in a folder here.
pub fn podman_storage() -> Option<PathBuf> {
    None
}

pub(in crate::store) fn import(request: ImportRequest<'_>, _name: &ImageName) -> Result<Imported> {
    refuse(request)
}

pub(in crate::store) fn repair(request: ImportRequest<'_>, _names: &[String]) -> Result<ObjectId> {
    refuse(request)
}

fn refuse<T>(request: ImportRequest<'_>) -> Result<T> {
    let ImportRequest { store: _store, from, rehash: _rehash, progress: _progress } = request;
    bail!("cannot import {from}: importing needs Linux, for example the podman machine")
}

pub(in crate::store) fn locked_for_collection<T>(
    _store: &Store,
    _lock: CollectionLock,
    _collect: impl FnOnce(HashSet<ObjectId>) -> Result<T>,
) -> Result<T> {
    bail!("garbage is collected on Linux, for example in the podman machine")
}

pub(in crate::store) fn commit(_store: &Store, _base: &ObjectId, _layer: impl Read) -> Result<ObjectId> {
    bail!("images are written on Linux, for example in the podman machine")
}

pub(in crate::store) fn forget_name(_store: &Store, _name: &str) -> Result<()> {
    Ok(())
}
