//! OCI images: pulled with composefs, known to it by their names, and forgotten.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::progress::{ProgressEvent, ProgressReporter, ProgressUnit};
use composefs::repository::Repository;
use composefs_oci::oci_image::{OciImage, resolve_ref, untag_image};
use composefs_oci::{LocalFetchOpt, PullOptions};
use indicatif::ProgressBar;
use lazyroot_proto::Algorithm;
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use super::repository::object_id;
use crate::store::name::ImageName;
use crate::store::progress::Progress;
use crate::store::repository::store::Store;
use crate::store::write::request::Imported;

/// Serves the process that started this one, if that is an import from rootless podman's storage: composefs runs
/// this program again under `podman unshare` to read files of subordinate users. Returns in every other process.
pub fn serve_if_storage_helper() {
    composefs_oci::cstor::init_if_helper();
}

pub(super) async fn import_oci<Hash: FsVerityHashValue>(
    repository: &Arc<Repository<Hash>>,
    reference: &str,
    storage_root: Option<&Path>,
    name: Option<&ImageName>,
    progress: &Progress,
) -> Result<Imported> {
    let reporter: Arc<dyn ProgressReporter> = Arc::new(Bars { progress: progress.clone(), bars: Mutex::default() });
    let options = PullOptions {
        progress: Some(reporter),
        // Only looked at for containers-storage.
        local_fetch: LocalFetchOpt::IfPossible,
        storage_root,
        ..PullOptions::default()
    };
    let pulled = composefs_oci::pull(repository, reference, name.map(ImageName::as_str), options).await?;
    // The pull's own verity digests are of the documents before the image was linked to them.
    let image = OciImage::open(repository, &pulled.manifest_digest, None)?;
    let id = image.image_ref(repository.erofs_version()).context("this is no container image but an OCI artifact")?;
    let config = image.read_config_json(repository)?;
    tracing::info!("{}", pulled.stats);
    Ok(Imported { id: object_id(id), config: Some(config) })
}

/// Forgets that an OCI image and its layers were imported, so that the next import reads their files again.
pub(super) fn forget_layers<Hash: FsVerityHashValue>(repository: &Repository<Hash>, name: &str) -> Result<()> {
    // A folder has no layers.
    let Ok(image) = OciImage::open_ref(repository, name) else { return Ok(()) };
    let layers = image.layer_diff_ids().into_iter().map(|layer| format!("oci-layer-{layer}"));
    let documents =
        [format!("oci-config-{}", image.config_digest()), format!("oci-manifest-{}", image.manifest_digest())];
    for stream in layers.chain(documents) {
        match rustix::fs::unlinkat(repository.repo_fd(), format!("streams/{stream}"), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).context("cannot forget an image's layers"),
        }
    }
    Ok(())
}

/// Forgets the OCI image that a name stands for, which would keep the image's objects from garbage collection.
pub(in crate::store) fn forget_name(store: &Store, name: &str) -> Result<()> {
    match store.algorithm() {
        Algorithm::Sha256 => forget_name_with::<Sha256HashValue>(store, name),
        Algorithm::Sha512 => forget_name_with::<Sha512HashValue>(store, name),
    }
}

fn forget_name_with<Hash: FsVerityHashValue>(store: &Store, name: &str) -> Result<()> {
    let repository = Repository::<Hash>::open_path(CWD, store.path())?;
    if resolve_ref(&repository, name).is_ok() {
        untag_image(&repository, name)?;
    }
    Ok(())
}

/// composefs' progress events as bars, one a layer.
struct Bars {
    progress: Progress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl ProgressReporter for Bars {
    fn report(&self, event: ProgressEvent) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ProgressEvent::Started { id, total, unit } => {
                let what: String = id.as_str().chars().take("sha256:".len() + 12).collect();
                let bar = match unit {
                    ProgressUnit::Items => self.progress.items(what, total),
                    _ => self.progress.bytes(what, total),
                };
                bars.insert(id.into_inner(), bar);
            }
            ProgressEvent::Progress { id, fetched, .. } => {
                if let Some(bar) = bars.get(id.as_str()) {
                    bar.set_position(fetched);
                }
            }
            ProgressEvent::Skipped { id } | ProgressEvent::Done { id, .. } => {
                if let Some(bar) = bars.remove(id.as_str()) {
                    bar.finish_and_clear();
                }
            }
            ProgressEvent::Message(message) => tracing::debug!("{message}"),
            _ => {}
        }
    }
}
