//! A folder taken in: its files become objects, those that changed since they were taken in before.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use composefs::fs::{HardlinkBehavior, ObjectStore, ReadFilesystemOpts, read_filesystem_with_opts};
use composefs::fsverity::FsVerityHashValue;
use composefs::repository::Repository;
use indicatif::ProgressBar;
use rustix::fs::{Mode, OFlags};

use super::folder_record::{FileState, FolderRecord};
use super::repository::object_id;
use super::threads::block_on;
use crate::store::objects::local::LocalObjects;
use crate::store::write::request::{ImportRequest, Imported, Rehash};

/// Makes an image of the folder at `path`, with all metadata as it is.
pub(super) fn import_folder<Hash: FsVerityHashValue>(
    request: ImportRequest<'_>,
    repository: &Arc<Repository<Hash>>,
    path: &Path,
) -> Result<Imported> {
    let bar = request.progress.bytes(format!("importing {}", path.display()), None);
    // composefs follows no symbolic link to the root.
    let path = path.canonicalize()?;
    let record = match request.rehash {
        Rehash::Changed => FolderRecord::load(&request.store.files, &path, request.store.algorithm()),
        Rehash::All => FolderRecord::empty(&path, request.store.algorithm()),
    };
    let objects = Arc::new(FolderObjects {
        repository: repository.clone(),
        objects: request.store.objects.clone(),
        record,
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
    if let Err(error) = objects.record.save(&request.store.files) {
        tracing::debug!("the next import of this folder reads all of it: {error}");
    }
    Ok(Imported { id: object_id(&id), config: None })
}

/// Takes a folder's files into the repository, those that changed since they were taken in before.
struct FolderObjects<Hash: FsVerityHashValue> {
    repository: Arc<Repository<Hash>>,
    objects: Arc<LocalObjects>,
    record: FolderRecord,
    bar: ProgressBar,
}

impl<Hash: FsVerityHashValue> ObjectStore<Hash> for FolderObjects<Hash> {
    fn ensure_object_from_fd(&self, file: OwnedFd, size: u64) -> Result<Hash> {
        let file = File::from(file);
        let before = FileState::of(&file.metadata()?);
        self.bar.inc(size);
        if let Some(id) = self.record.object(&before)
            && self.objects.size(&id).is_ok_and(|found| found == size)
        {
            self.record.add(before, id);
            return Ok(Hash::from_hex(id.to_hex())?);
        }
        let id = self.repository.ensure_object_from_reader(&file, size)?;
        if FileState::of(&file.metadata()?) == before {
            self.record.add(before, object_id(&id));
        }
        Ok(id)
    }

    fn write_semaphore(&self) -> Arc<tokio::sync::Semaphore> {
        self.repository.write_semaphore()
    }
}
