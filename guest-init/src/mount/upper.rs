//! The upper layer: where changes to a mounted image go.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use crate::mount::disk;
use crate::mount::workdir::Workdir;

/// Where overlayfs keeps what only it understands.
const OVERLAYS_OWN: &[u8] = b"trusted.overlay.";

/// The folder of changes in the upper layer's file system.
const CHANGES: &str = "changes";

/// Where changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upper {
    /// Nowhere: the mount is read-only.
    None,
    /// To memory, gone with the mount.
    Tmpfs,
    /// To the ext4 on this block device.
    Disk(PathBuf),
}

/// A mounted upper layer.
pub struct UpperLayer {
    dir: PathBuf,
    kind: Upper,
}

impl UpperLayer {
    /// Mounts it in `workdir`; `None` for a read-only mount.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn mount(kind: Upper, workdir: &Workdir) -> Result<Option<Self>> {
        let dir = match &kind {
            Upper::None => return Ok(None),
            Upper::Disk(device) => {
                let dir = workdir.layer("upper")?;
                disk::mount(device, &dir)?;
                dir
            }
            Upper::Tmpfs => {
                let dir = workdir.layer("upper")?;
                rustix::mount::mount("lazyroot", &dir, "tmpfs", MountFlags::empty(), c"mode=755")
                    .context("cannot mount a tmpfs for changes")?;
                dir
            }
        };
        Ok(Some(Self { dir, kind }))
    }

    /// The folder of changes.
    pub fn changes(&self) -> PathBuf {
        self.dir.join(CHANGES)
    }

    /// overlayfs' own folder.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Whether it is memory.
    pub fn is_memory(&self) -> bool {
        self.kind == Upper::Tmpfs
    }

    /// Makes its folders, for the image whose `metadata` layer this is.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn prepare(&self, metadata: &Path) -> Result<()> {
        // A disk has them from an earlier boot.
        if !self.changes().exists() {
            fs::create_dir(self.changes()).context("cannot make the upper layer")?;
            copy_root_attributes(metadata, &self.changes())?;
        }
        fs::create_dir_all(self.work()).context("cannot make the upper layer")
    }

    /// Lends folders of a disk to the image mounted at `target` ([`disk::lend_folders`]).
    pub fn lend_folders(&self, target: &Path) {
        if matches!(self.kind, Upper::Disk(_)) {
            disk::lend_folders(&self.dir, target);
        }
    }

    /// Opens the folder of changes.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.changes(), flags, Mode::empty()).context("cannot open the upper layer")
    }
}

/// The merged root shows the upper layer's own attributes: give it the image's.
fn copy_root_attributes(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(to, meta.permissions())?;
    for name in xattr::list(from)?.filter(|name| !name.as_bytes().starts_with(OVERLAYS_OWN)) {
        // Best effort: a kernel may not let us have one.
        if let Ok(Some(value)) = xattr::get(from, &name) {
            let _ = xattr::set(to, &name, &value);
        }
    }
    let time = fs::FileTimes::new().set_accessed(meta.accessed()?).set_modified(meta.modified()?);
    File::open(to)?.set_times(time)?;
    Ok(())
}
