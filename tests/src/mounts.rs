//! Mounts of a test's own, undone when dropped.

use std::path::{Path, PathBuf};

use composefs::fsverity::Sha256HashValue;
use composefs::mount::MountOptions;
use composefs::repository::Repository;
use rustix::fs::CWD;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use crate::inputs::need_root;
use crate::temporary;

/// An image mounted by the kernel from the objects on this disk: what composefs itself would show.
pub struct Mounted(TempDir);

impl Mounted {
    /// The image of this digest in a repository.
    pub fn new(repository: &Path, id: &str) -> Self {
        need_root();
        let dir = temporary();
        let repository = Repository::<Sha256HashValue>::open_path(CWD, repository).unwrap();
        // By digest: by name, composefs demands fs-verity of the file system.
        let id = id.strip_prefix("sha256:").unwrap();
        repository.mount_at(id, dir.path(), &MountOptions::default()).unwrap();
        Self(dir)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// Unmounts a folder when dropped.
pub struct Unmount(pub PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
