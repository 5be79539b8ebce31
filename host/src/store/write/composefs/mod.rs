//! Writing to the repository: everything that needs the composefs crates, which compile on Linux only.

mod file_states;
mod folder_scan;
mod layer;
mod object_stamps;
mod podman_storage;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use composefs::fs::{HardlinkBehavior, ObjectStore, ReadFilesystemOpts, read_filesystem_with_opts};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::progress::{ProgressEvent, ProgressReporter, ProgressUnit};
use composefs::repository::{Repository, RepositoryConfig};
use composefs_oci::oci_image::{OciImage, resolve_ref, untag_image};
use composefs_oci::{LocalFetchOpt, PullOptions};
use indicatif::ProgressBar;
use lazyroot_proto::index::entries;
use lazyroot_proto::{Algorithm, ObjectId};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use self::file_states::{FileState, Seen};
use self::object_stamps::Stamp;
use self::podman_storage::SideBySide;
pub use self::podman_storage::storage_root as podman_storage;
use crate::store::files::remove_if_there;
use crate::store::name::ImageName;
use crate::store::objects::local::RepositorySource;
use crate::store::objects::source::ObjectError;
use crate::store::progress::Progress;
use crate::store::repo::{Rehash, Store};
use crate::store::upkeep::gc::{Collect, Streams};
use crate::store::write::source::{Import, Imported, Source};

/// Threads that read and hash files of a folder: more only helps disks that answer slowly.
const MAX_THREADS: usize = 8;

/// Serves the process that started this one, if that is an import from rootless podman's storage: composefs runs
/// this program again under `podman unshare` to read files of subordinate users. Returns in every other process.
pub fn serve_if_storage_helper() {
    composefs_oci::cstor::init_if_helper();
}

/// Makes a repository: SHA-256, the default EROFS version, fs-verity not demanded of the file system.
pub(in crate::store) fn create(path: &Path) -> Result<()> {
    crate::home::private_dir(path)?;
    let config = RepositoryConfig::default().set_insecure();
    Repository::<Sha256HashValue>::init_path(CWD, path, config)?;
    Ok(())
}

impl Import<'_> {
    /// Brings all of an image but its name into the store, and to the disk.
    pub(in crate::store) fn run(self, name: &ImageName) -> Result<Imported> {
        check(self.from)?;
        self.explained(match self.store.algorithm() {
            Algorithm::Sha256 => self.run_with::<Sha256HashValue>(name),
            Algorithm::Sha512 => self.run_with::<Sha512HashValue>(name),
        })
    }

    /// Brings the objects of an image that are missing into the store again, from where it came from, and names
    /// nothing. The image that is there now: another one if the source has changed.
    pub(in crate::store) fn repair(self, names: &[String]) -> Result<ObjectId> {
        check(self.from)?;
        self.explained(match self.store.algorithm() {
            Algorithm::Sha256 => self.repair_with::<Sha256HashValue>(names),
            Algorithm::Sha512 => self.repair_with::<Sha512HashValue>(names),
        })
    }

    fn explained<T>(self, result: Result<T>) -> Result<T> {
        result.map_err(|error| explain(error, self.store)).with_context(|| format!("cannot import {}", self.from))
    }

    fn repair_with<Hash: FsVerityHashValue>(self, names: &[String]) -> Result<ObjectId> {
        let repository = self.repository::<Hash>()?;
        names.iter().try_for_each(|name| forget_layers(&repository, name))?;
        let imported = self.once(&repository, None)?;
        repository.sync()?;
        Ok(imported.id)
    }

    fn run_with<Hash: FsVerityHashValue>(self, name: &ImageName) -> Result<Imported> {
        let Self { store, progress, .. } = self;
        let repository = self.repository::<Hash>()?;
        let begin = Stamp::of(&tempfile::tempfile_in(store.temporary_dir()?)?.metadata()?);
        // composefs follows no symbolic link to the root.
        let folder = match self.from {
            Source::Directory(path) => Some(path.canonicalize()?),
            _ => None,
        };
        // One that changes meanwhile is taken in as any other.
        let scan = |folder: &Path| folder_scan::scan(folder).ok().flatten();
        let found = folder.as_deref().and_then(scan);
        if let (Some(folder), Some(found), Rehash::Changed) = (&folder, &found, self.rehash)
            && let Some(id) = folder_scan::known(&store.files, folder, found)
            && store.manifest(&id).exists()
            && check_import(store, &id, &begin, self.rehash, progress)?.as_before
        {
            return Ok(Imported { id, config: None });
        }
        let mut imported = self.once(&repository, Some(name))?;
        // An import takes an object that is there for a good one. One that is not (cut short by a full disk or a
        // crash, changed through a link that another program has) is taken away here and imported again.
        let mut state = check_import(store, &imported.id, &begin, self.rehash, progress)?;
        if !state.damaged.is_empty() {
            tracing::warn!("{} objects of the store are damaged; importing them again", state.damaged.len());
            for id in &state.damaged {
                remove_if_there(&store.path().join("objects").join(id.object_path()))?;
            }
            forget_layers(&repository, name.as_str())?;
            imported = self.once(&repository, Some(name))?;
            state = check_import(store, &imported.id, &begin, Rehash::Changed, progress)?;
            if let Some(id) = state.damaged.first() {
                bail!("object {id} is damaged in the source too");
            }
        }
        if !state.as_before {
            let step = progress.step("writing to disk".to_owned());
            repository.sync()?;
            step.finish_and_clear();
            if let Err(error) = store.remember_checked(&imported.id, &state.stamps) {
                tracing::debug!("what was checked is not remembered: {error:#}");
            }
        }
        // What was found at the end too, nobody changed meanwhile.
        if let (Some(folder), Some(found)) = (&folder, &found)
            && scan(folder).as_ref() == Some(found)
            && let Err(error) = folder_scan::remember(&store.files, folder, found, &imported.id)
        {
            tracing::debug!("the next import of this folder takes in all of it: {error}");
        }
        Ok(imported)
    }

    /// The store's repository, if it can be written.
    fn repository<Hash: FsVerityHashValue>(self) -> Result<Arc<Repository<Hash>>> {
        let repository = Arc::new(Repository::open_path(CWD, self.store.path())?);
        repository.ensure_writable()?;
        Ok(repository)
    }

    fn once<Hash: FsVerityHashValue>(
        self,
        repository: &Arc<Repository<Hash>>,
        name: Option<&ImageName>,
    ) -> Result<Imported> {
        let Self { store, progress, .. } = self;
        match self.from {
            Source::Directory(path) => self.directory(repository, path),
            Source::ContainersStorage { root, image } => {
                let reference = format!("containers-storage:{image}");
                // Rootless, composefs finds the storage itself, and copies what it cannot share.
                let storage = match root {
                    Some(root) => Some(root.clone()),
                    None if rustix::process::geteuid().is_root() && std::env::var_os("STORAGE_OPTS").is_none() => {
                        podman_storage()
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

    fn directory<Hash: FsVerityHashValue>(self, repository: &Arc<Repository<Hash>>, path: &Path) -> Result<Imported> {
        let bar = self.progress.bytes(format!("importing {}", path.display()), None);
        // composefs follows no symbolic link to the root.
        let path = path.canonicalize()?;
        let seen = match self.rehash {
            Rehash::Changed => Seen::load(&self.store.files, &path, self.store.algorithm()),
            Rehash::All => Seen::forgotten(&path, self.store.algorithm()),
        };
        let objects = Arc::new(FolderObjects {
            repository: repository.clone(),
            source: self.store.source.clone(),
            seen,
            bar: bar.clone(),
        });
        // Neither filtered nor made canonical, the root included: the image is this tree, nothing less.
        let options = ReadFilesystemOpts {
            store: Some(objects.clone() as Arc<dyn ObjectStore<Hash>>),
            hardlinks: HardlinkBehavior::Tracked,
            ..ReadFilesystemOpts::default()
        };
        let root = rustix::fs::open("/", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let tree = block_on(|| read_filesystem_with_opts(root, path, options))??;
        bar.set_message("writing the manifest");
        let id = tree.commit_image(repository, None)?;
        bar.finish_and_clear();
        if let Err(error) = objects.seen.save(&self.store.files) {
            tracing::debug!("the next import of this folder reads all of it: {error}");
        }
        Ok(Imported { id: object_id(&id), config: None })
    }
}

/// Forgets the OCI image that a name stands for, which would keep the image's objects from garbage collection.
pub(in crate::store) fn forget_name(store: &Store, name: &str) -> Result<()> {
    match store.algorithm() {
        Algorithm::Sha256 => forget_name_with::<Sha256HashValue>(store, name),
        Algorithm::Sha512 => forget_name_with::<Sha512HashValue>(store, name),
    }
}

/// How long a collection waits for an import, and how often it looks.
const COLLECTION_WAIT: Duration = Duration::from_secs(600);
const COLLECTION_POLL: Duration = Duration::from_millis(100);

/// Runs `collect` while nobody imports or changes names, with what OCI images need.
pub(in crate::store) fn locked_for_collection<T>(
    store: &Store,
    how: Collect,
    collect: impl FnOnce(Streams) -> Result<T>,
) -> Result<T> {
    store.ensure_changeable()?;
    let collected = match store.algorithm() {
        Algorithm::Sha256 => locked_with::<Sha256HashValue, T>(store, how, collect),
        Algorithm::Sha512 => locked_with::<Sha512HashValue, T>(store, how, collect),
    };
    collected.map_err(|error| explain(error, store))
}

fn locked_with<Hash: FsVerityHashValue, T>(
    store: &Store,
    how: Collect,
    collect: impl FnOnce(Streams) -> Result<T>,
) -> Result<T> {
    // Opened, it holds the shared lock: enough for who only looks.
    let repository = Repository::<Hash>::open_path(CWD, store.path())?;
    if how == Collect::Really {
        repository.ensure_writable()?;
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(repository.repo_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if begin.elapsed() < COLLECTION_WAIT => {
                    if begin.elapsed() < COLLECTION_POLL {
                        tracing::warn!("waiting for an import, or another program that uses the store, to end");
                    }
                    std::thread::sleep(COLLECTION_POLL);
                }
                Err(Errno::WOULDBLOCK) => bail!("an import, or another program that uses the store, did not end"),
                Err(error) => return Err(error).context("cannot lock the store"),
            }
        }
    }
    collect(live_streams(&repository)?)
}

/// What the named streams (OCI images) of a repository need, as composefs' own garbage collection finds it.
fn live_streams<Hash: FsVerityHashValue>(repository: &Repository<Hash>) -> Result<Streams> {
    let mut objects = HashSet::new();
    // A stream names those that it needs by their objects; their links are what names them to the repository.
    let mut by_object = HashMap::new();
    let dir =
        match rustix::fs::openat(repository.repo_fd(), "streams", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Streams { objects }),
            dir => dir.context("cannot open the repository's streams")?,
        };
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && let Ok(Some(id)) = repository.has_stream(name)
        {
            by_object.insert(id, name.to_owned());
        }
    }
    let refs = repository.list_stream_refs("").context("cannot list the repository's OCI images")?;
    let mut todo: Vec<String> = refs.into_iter().map(|(_, stream)| stream).collect();
    let mut walked = HashSet::new();
    while let Some(name) = todo.pop() {
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        if !walked.insert(name.clone()) {
            continue;
        }
        let Some(id) = repository.has_stream(&name)? else { continue };
        objects.insert(object_id(&id));
        let mut stream = repository.open_stream(&name, None, None).with_context(|| {
            format!("cannot tell what the OCI stream {name} needs, so nothing is removed; import its image again")
        })?;
        stream.get_object_refs(|id| {
            objects.insert(object_id(id));
        })?;
        for (_, id) in stream.iter_named_refs() {
            objects.insert(object_id(id));
            todo.extend(by_object.get(id).cloned());
        }
    }
    Ok(Streams { objects })
}

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

async fn import_oci<Hash: FsVerityHashValue>(
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

/// What an import left in the store.
struct ImportState {
    /// Objects that are missing or not what they should be.
    damaged: Vec<ObjectId>,
    /// The manifest's stamp and those of its objects, in manifest order, if nothing is damaged.
    stamps: Vec<Stamp>,
    /// Whether all is as it was when it was written to disk before.
    as_before: bool,
}

/// Looks at all objects of an image that was imported since `begin`. What was written after that was hashed on the
/// way; what was there before is hashed now, unless it was before and did not change since.
fn check_import(
    store: &Store,
    image: &ObjectId,
    begin: &Stamp,
    rehash: Rehash,
    progress: &Progress,
) -> Result<ImportState> {
    let manifest_damaged = ImportState { damaged: vec![*image], stamps: vec![], as_before: false };
    match store.source.check(image) {
        Ok(_) => {}
        Err(ObjectError::NotFound(_) | ObjectError::Corrupt(_)) => return Ok(manifest_damaged),
        Err(error) => return Err(error.into()),
    }
    let index = store.index(image)?.read()?;
    let known = store.checked(image).unwrap_or_default();
    let (mut damaged, mut stamps, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
    let objects = std::iter::once((*image, None)).chain(entries(&index)?.map(|(id, size)| (id, Some(size))));
    for (position, (id, size)) in objects.enumerate() {
        let meta = match fs::symlink_metadata(store.path().join("objects").join(id.object_path())) {
            Ok(meta) if size.is_none_or(|size| size == meta.len()) => meta,
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot look at object {id}"));
            }
            _ => {
                damaged.push(id);
                continue;
            }
        };
        let stamp = Stamp::of(&meta);
        let trusted = stamp.is_after(begin) || rehash == Rehash::Changed && known.get(position) == Some(&stamp);
        if !trusted {
            doubtful.push((id, size, stamp));
        }
        stamps.push(stamp);
    }
    if rehash == Rehash::Changed {
        let elsewhere = store.checked_anywhere(&doubtful.iter().map(|(id, ..)| *id).collect::<Vec<_>>());
        doubtful.retain(|(id, _, stamp)| elsewhere.get(id) != Some(stamp));
    }
    let doubtful: Vec<_> = doubtful.into_iter().map(|(id, size, _)| (id, size)).collect();
    damaged.extend(store.check_objects(&doubtful, progress).0.into_keys());
    Ok(ImportState { as_before: damaged.is_empty() && stamps == known, damaged, stamps })
}

/// Forgets that an OCI image and its layers were imported, so that the next import reads their files again.
fn forget_layers<Hash: FsVerityHashValue>(repository: &Repository<Hash>, name: &str) -> Result<()> {
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
            "the disk that holds the store {} is full: free some space and try again; nothing is broken",
            store.path().display()
        );
    }
    if errno == Some(Errno::ROFS) {
        return anyhow!("the store {} is on a read-only file system", store.path().display());
    }
    let denied = [Errno::ACCESS, Errno::PERM];
    if errno.is_some_and(|errno| denied.contains(&errno)) && !rustix::process::geteuid().is_root() {
        return error.context("permission denied: files of other users need root");
    }
    error
}

/// Takes a folder's files into the repository, those that changed since they were taken in before.
struct FolderObjects<Hash: FsVerityHashValue> {
    repository: Arc<Repository<Hash>>,
    source: Arc<RepositorySource>,
    seen: Seen,
    bar: ProgressBar,
}

impl<Hash: FsVerityHashValue> ObjectStore<Hash> for FolderObjects<Hash> {
    fn ensure_object_from_fd(&self, file: OwnedFd, size: u64) -> Result<Hash> {
        let file = File::from(file);
        let before = FileState::of(&file.metadata()?);
        self.bar.inc(size);
        if let Some(id) = self.seen.object(&before)
            && self.source.size(&id).is_ok_and(|found| found == size)
        {
            self.seen.add(before, id);
            return Ok(Hash::from_hex(id.to_hex())?);
        }
        let id = self.repository.ensure_object_from_reader(&file, size)?;
        if FileState::of(&file.metadata()?) == before {
            self.seen.add(before, object_id(&id));
        }
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
