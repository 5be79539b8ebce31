//! Writing to the repository: everything that needs the composefs crates, which compile on Linux only.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use composefs::fs::{HardlinkBehavior, ObjectStore, ReadFilesystemOpts, read_filesystem_with_opts};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::progress::{ProgressEvent, ProgressReporter, ProgressUnit};
use composefs::repository::{Repository, RepositoryConfig};
use composefs_oci::oci_image::{OciImage, resolve_ref, untag_image};
use composefs_oci::{LocalFetchOpt, PullOptions};
use indicatif::ProgressBar;
use lazyroot_proto::{Algorithm, ObjectId, verity};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::files::remove_if_there;
use super::import::{Imported, Source};
use super::name::ImageName;
use super::podman::{self, SideBySide};
use super::progress::Progress;
use super::repo::Store;
use super::source::{Object, ObjectError, ObjectSource};

/// Threads that read and hash files of a folder: more only helps disks that answer slowly.
const MAX_THREADS: usize = 8;

/// Serves the process that started this one, if that is an import from rootless podman's storage: composefs runs
/// this program again under `podman unshare` to read files of subordinate users. Returns in every other process.
pub fn serve_if_storage_helper() {
    composefs_oci::cstor::init_if_helper();
}

/// Makes a repository: SHA-256, the default EROFS version, fs-verity not demanded of the file system.
pub(super) fn create(path: &Path) -> Result<()> {
    crate::home::private_dir(path)?;
    let config = RepositoryConfig::default().set_insecure();
    Repository::<Sha256HashValue>::init_path(CWD, path, config)?;
    Ok(())
}

/// Imports from anywhere, see [`super::import::import`].
pub(super) fn import(store: &Store, from: &Source, name: &ImageName, progress: &Progress) -> Result<Imported> {
    check(from)?;
    let imported = match store.algorithm() {
        Algorithm::Sha256 => import_with::<Sha256HashValue>(store, from, name, progress),
        Algorithm::Sha512 => import_with::<Sha512HashValue>(store, from, name, progress),
    };
    imported.map_err(|error| explain(error, store)).with_context(|| format!("cannot import {from}"))
}

/// Forgets the OCI image that a name stands for, which would keep the image's objects from garbage collection.
pub(super) fn forget_name(store: &Store, name: &str) -> Result<()> {
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

/// Finds what would fail late or with an unclear message.
fn check(from: &Source) -> Result<()> {
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

fn import_with<Hash: FsVerityHashValue>(
    store: &Store,
    from: &Source,
    name: &ImageName,
    progress: &Progress,
) -> Result<Imported> {
    let repository = Arc::new(Repository::<Hash>::open_path(CWD, store.path())?);
    repository.ensure_writable()?;
    let reference = match from {
        Source::ContainersStorage { image, .. } => format!("containers-storage:{image}"),
        from => from.to_string(),
    };
    let once = || match from {
        Source::Directory(path) => block_on(|| import_directory(&repository, path, progress))?,
        Source::ContainersStorage { root, .. } => {
            // Rootless, composefs finds the storage itself, and copies what it cannot share.
            let storage = match root {
                Some(root) => Some(root.clone()),
                None if rustix::process::geteuid().is_root() && std::env::var_os("STORAGE_OPTS").is_none() => {
                    podman::storage_root()
                }
                None => None,
            };
            let both = storage.as_deref().and_then(|storage| SideBySide::new(store.path(), storage));
            match &both {
                Some(SideBySide { repository, storage, .. }) => {
                    let repository = Arc::new(Repository::<Hash>::open_path(CWD, repository)?);
                    block_on(|| import_oci(&repository, &reference, Some(storage), name, progress))?
                }
                None => block_on(|| import_oci(&repository, &reference, storage.as_deref(), name, progress))?,
            }
        }
        _ => block_on(|| import_oci(&repository, &reference, None, name, progress))?,
    };
    let mut imported = once()?;
    // An import takes an object that is there for a good one. One that was cut short, by a full disk or a crash, is
    // taken away here and imported again.
    let damaged = damaged_objects(store, &imported.id)?;
    if !damaged.is_empty() {
        tracing::warn!("{} objects of the store are damaged; importing them again", damaged.len());
        for id in &damaged {
            remove_if_there(&store.path().join("objects").join(id.object_path()))?;
        }
        forget_layers(&repository, name)?;
        imported = once()?;
        if let Some(id) = damaged_objects(store, &imported.id)?.first() {
            bail!("object {id} is damaged in the source too");
        }
    }
    let step = progress.step("writing to disk".to_owned());
    repository.sync()?;
    step.finish_and_clear();
    Ok(imported)
}

/// Runs a future to its end on threads of its own, so that callers may be asynchronous or not.
fn block_on<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> Result<T> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(MAX_THREADS);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
            Ok(runtime.block_on(work()))
        });
        thread.join().map_err(|_| anyhow!("the import failed in a way that is a bug: please report it"))?
    })
}

async fn import_directory<Hash: FsVerityHashValue>(
    repository: &Arc<Repository<Hash>>,
    path: &Path,
    progress: &Progress,
) -> Result<Imported> {
    let bar = progress.bytes(format!("importing {}", path.display()), None);
    let objects = CountedObjects { repository: repository.clone(), bar: bar.clone() };
    // Neither filtered nor made canonical, the root included: the image is this tree, nothing less.
    let options = ReadFilesystemOpts {
        store: Some(Arc::new(objects) as Arc<dyn ObjectStore<Hash>>),
        hardlinks: HardlinkBehavior::Tracked,
        ..ReadFilesystemOpts::default()
    };
    // composefs follows no symbolic link to the root.
    let path = path.canonicalize()?;
    let root = rustix::fs::open("/", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let tree = read_filesystem_with_opts(root, path, options).await?;
    bar.set_message("writing the manifest");
    let id = tree.commit_image(repository, None)?;
    bar.finish_and_clear();
    Ok(Imported { id: object_id(&id), config: None })
}

async fn import_oci<Hash: FsVerityHashValue>(
    repository: &Arc<Repository<Hash>>,
    reference: &str,
    storage_root: Option<&Path>,
    name: &ImageName,
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
    let pulled = composefs_oci::pull(repository, reference, Some(name.as_str()), options).await?;
    // The pull's own verity digests are of the documents before the image was linked to them.
    let image = OciImage::open(repository, &pulled.manifest_digest, None)?;
    let id = image.image_ref(repository.erofs_version()).context("this is no container image but an OCI artifact")?;
    let config = image.read_config_json(repository)?;
    tracing::info!("{}", pulled.stats);
    Ok(Imported { id: object_id(id), config: Some(config) })
}

/// The objects of an image that are missing or not as long as the manifest says, or the manifest itself. Hashing
/// all of them would take as long as the import.
fn damaged_objects(store: &Store, image: &ObjectId) -> Result<Vec<ObjectId>> {
    let size = store.source.size(image)?;
    let mut manifest = vec![0; size as usize];
    store.source.read(&Object { id: *image, size }, 0, &mut manifest)?;
    if verity::digest(image.algorithm(), &manifest) != *image {
        return Ok(vec![*image]);
    }
    let mut damaged = Vec::new();
    for (id, size) in store.index(image)?.entries() {
        match store.source.size(id) {
            Ok(found) if found == *size => {}
            Ok(_) | Err(ObjectError::NotFound(_)) => damaged.push(*id),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(damaged)
}

/// Forgets that an OCI image and its layers were imported, so that the next import reads their files again.
fn forget_layers<Hash: FsVerityHashValue>(repository: &Repository<Hash>, name: &ImageName) -> Result<()> {
    // A folder has no layers.
    let Ok(image) = OciImage::open_ref(repository, name.as_str()) else { return Ok(()) };
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

fn object_id<Hash: FsVerityHashValue>(hash: &Hash) -> ObjectId {
    hash.to_hex().parse().expect("composefs' digests are of the lengths that fs-verity knows")
}

/// One message in place of a long chain, where the system's error says it all.
fn explain(error: anyhow::Error, store: &Store) -> anyhow::Error {
    let mut errnos = error.chain().filter_map(|cause| {
        let io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        io.or_else(|| cause.downcast_ref::<Errno>().map(|errno| errno.raw_os_error()))
    });
    let errno = errnos.next().map(Errno::from_raw_os_error);
    let full = [Errno::NOSPC, Errno::DQUOT];
    if errno.is_some_and(|errno| full.contains(&errno)) {
        return anyhow!(
            "the disk that holds the store {} is full: free some space and import again; nothing is broken",
            store.path().display()
        );
    }
    if errno == Some(Errno::ROFS) {
        return anyhow!("the store {} is on a read-only file system", store.path().display());
    }
    let denied = [Errno::ACCESS, Errno::PERM];
    if errno.is_some_and(|errno| denied.contains(&errno)) && !rustix::process::geteuid().is_root() {
        return error.context("permission denied: importing files of other users needs root");
    }
    error
}

/// Takes files into the repository and counts their bytes.
struct CountedObjects<Hash: FsVerityHashValue> {
    repository: Arc<Repository<Hash>>,
    bar: ProgressBar,
}

impl<Hash: FsVerityHashValue> ObjectStore<Hash> for CountedObjects<Hash> {
    fn ensure_object_from_fd(&self, file: OwnedFd, size: u64) -> Result<Hash> {
        let id = self.repository.ensure_object_from_reader(File::from(file), size)?;
        self.bar.inc(size);
        Ok(id)
    }

    fn write_semaphore(&self) -> Arc<tokio::sync::Semaphore> {
        self.repository.write_semaphore()
    }
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
