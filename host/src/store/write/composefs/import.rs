//! An import into the repository: everything of an image but its name, checked and on disk.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::Repository;
use lazyroot_proto::{Algorithm, ObjectId};
use rustix::fs::CWD;

use super::import_check::check_import;
use super::object_stamps::{self, ObjectStamp};
use super::oci::{forget_layers, import_oci};
use super::podman_storage::{SideBySide, storage_root};
use super::repository::explain;
use super::threads::block_on;
use super::{folder, folder_scan};
use crate::store::files::remove_if_there;
use crate::store::name::ImageName;
use crate::store::repository::store::Store;
use crate::store::write::request::{ImportRequest, Imported, Rehash};
use crate::store::write::source::Source;

/// Brings all of an image but its name into the store, and to the disk.
pub(in crate::store) fn run(request: ImportRequest<'_>, name: &ImageName) -> Result<Imported> {
    check_source(request.from)?;
    let imported = match request.store.algorithm() {
        Algorithm::Sha256 => run_with::<Sha256HashValue>(request, name),
        Algorithm::Sha512 => run_with::<Sha512HashValue>(request, name),
    };
    explain_import(request, imported)
}

/// Brings the objects of an image that are missing into the store again, from where it came from, and names
/// nothing. The image that is there now: another one if the source has changed.
pub(in crate::store) fn repair(request: ImportRequest<'_>, names: &[String]) -> Result<ObjectId> {
    check_source(request.from)?;
    let repaired = match request.store.algorithm() {
        Algorithm::Sha256 => repair_with::<Sha256HashValue>(request, names),
        Algorithm::Sha512 => repair_with::<Sha512HashValue>(request, names),
    };
    explain_import(request, repaired)
}

fn explain_import<T>(request: ImportRequest<'_>, result: Result<T>) -> Result<T> {
    result.map_err(|error| explain(error, request.store)).with_context(|| format!("cannot import {}", request.from))
}

fn repair_with<Hash: FsVerityHashValue>(request: ImportRequest<'_>, names: &[String]) -> Result<ObjectId> {
    let repository = open_writable::<Hash>(request.store)?;
    names.iter().try_for_each(|name| forget_layers(&repository, name))?;
    let imported = import_once(request, &repository, None)?;
    repository.sync()?;
    Ok(imported.id)
}

fn run_with<Hash: FsVerityHashValue>(request: ImportRequest<'_>, name: &ImageName) -> Result<Imported> {
    let ImportRequest { store, progress, .. } = request;
    let repository = open_writable::<Hash>(request.store)?;
    let begin = ObjectStamp::of(&tempfile::tempfile_in(store.temporary_dir()?)?.metadata()?);
    // composefs follows no symbolic link to the root.
    let folder = match request.from {
        Source::Directory(path) => Some(path.canonicalize()?),
        _ => None,
    };
    // One that changes meanwhile is taken in as any other.
    let scan = |folder: &Path| folder_scan::scan(folder).ok().flatten();
    let found = folder.as_deref().and_then(scan);
    if let (Some(folder), Some(found), Rehash::Changed) = (&folder, &found, request.rehash)
        && let Some(id) = folder_scan::image_of(&store.files, folder, found)
        && store.manifest(&id).exists()
        && check_import(store, &id, &begin, request.rehash, progress)?.as_before
    {
        return Ok(Imported { id, config: None });
    }
    let mut imported = import_once(request, &repository, Some(name))?;
    // An import takes an object that is there for a good one. One that is not (cut short by a full disk or a
    // crash, changed through a link that another program has) is taken away here and imported again.
    let mut state = check_import(store, &imported.id, &begin, request.rehash, progress)?;
    if !state.damaged.is_empty() {
        tracing::warn!("{} objects of the store are damaged; importing them again", state.damaged.len());
        for id in &state.damaged {
            remove_if_there(&store.path().join("objects").join(id.object_path()))?;
        }
        forget_layers(&repository, name.as_str())?;
        imported = import_once(request, &repository, Some(name))?;
        state = check_import(store, &imported.id, &begin, Rehash::Changed, progress)?;
        if let Some(id) = state.damaged.first() {
            bail!("object {id} is damaged in the source too");
        }
    }
    if !state.as_before {
        let step = progress.step("writing to disk".to_owned());
        repository.sync()?;
        step.finish_and_clear();
        if let Err(error) = object_stamps::save(store, &imported.id, &state.stamps) {
            tracing::debug!("what was checked is not remembered: {error:#}");
        }
    }
    // What was found at the end too, nobody changed meanwhile.
    if let (Some(folder), Some(found)) = (&folder, &found)
        && scan(folder).as_ref() == Some(found)
        && let Err(error) = folder_scan::save(&store.files, folder, found, &imported.id)
    {
        tracing::debug!("the next import of this folder takes in all of it: {error}");
    }
    Ok(imported)
}

/// The store's repository, if it can be written.
fn open_writable<Hash: FsVerityHashValue>(store: &Store) -> Result<Arc<Repository<Hash>>> {
    let repository = Arc::new(Repository::open_path(CWD, store.path())?);
    repository.ensure_writable()?;
    Ok(repository)
}

fn import_once<Hash: FsVerityHashValue>(
    request: ImportRequest<'_>,
    repository: &Arc<Repository<Hash>>,
    name: Option<&ImageName>,
) -> Result<Imported> {
    let ImportRequest { store, progress, .. } = request;
    match request.from {
        Source::Directory(path) => folder::import_folder(request, repository, path),
        Source::ContainersStorage { root, image } => {
            let reference = format!("containers-storage:{image}");
            // Rootless, composefs finds the storage itself, and copies what it cannot share.
            let storage = match root {
                Some(root) => Some(root.clone()),
                None if rustix::process::geteuid().is_root() && std::env::var_os("STORAGE_OPTS").is_none() => {
                    storage_root()
                }
                None => None,
            };
            let both = storage.as_deref().and_then(|storage| SideBySide::new(store.path(), storage));
            match &both {
                Some(SideBySide { repository, storage, .. }) => {
                    let repository = Arc::new(Repository::<Hash>::open_path(CWD, repository)?);
                    block_on(|| import_oci(&repository, &reference, Some(storage), name, progress))?
                }
                None => block_on(|| import_oci(repository, &reference, storage.as_deref(), name, progress))?,
            }
        }
        from => {
            let reference = from.to_string();
            block_on(|| import_oci(repository, &reference, None, name, progress))?
        }
    }
}

/// Finds what would fail late or with an unclear message.
fn check_source(from: &Source) -> Result<()> {
    match from {
        Source::Directory(path) => {
            let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(meta.is_dir(), "{} is no folder: an archive is imported as oci-archive:PATH", path.display());
        }
        Source::Registry(_) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            ensure!(
                std::env::split_paths(&path).any(|dir| dir.join("skopeo").is_file()),
                "cannot pull from registries without skopeo: 'apt-get install skopeo' (Debian), \
                 'dnf install skopeo' (Fedora) or 'brew install skopeo'"
            );
        }
        _ => {}
    }
    Ok(())
}
