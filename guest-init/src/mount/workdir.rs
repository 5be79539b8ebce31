//! The folder in which layers are mounted for a moment, until overlayfs has them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use crate::mount::fs_context::mount_hint;

/// A file system of our own for the layers' mount points. Once detached, when this is dropped, it goes when the last layer
/// does.
pub struct Workdir(PathBuf);

impl Workdir {
    /// Mounts it at `dir`.
    pub fn mount(dir: &Path) -> Result<Self> {
        rustix::mount::mount("lazyroot", dir, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, c"mode=700")
            .with_context(|| mount_hint("tmpfs", dir))?;
        Ok(Self(dir.to_owned()))
    }

    /// A folder to mount a layer at.
    pub fn layer(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
