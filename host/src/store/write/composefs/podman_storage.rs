//! podman's storage, in a place where its files can be hard-linked.
//!
//! podman, buildah and skopeo mount the `overlay` folder of their storage onto itself and leave it so. The kernel
//! makes no hard link from one mount to another, even of one file system, so importing would copy every file.
//! A private clone of the mount below, without what is mounted on top of it, shows store and storage side by side.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io;
use rustix::mount::OpenTreeFlags;

/// Where podman keeps its images, as composefs finds it: by variable, the user's own, the system's.
pub fn storage_root() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let candidates = [
        variable("CONTAINERS_STORAGE_ROOT"),
        variable("XDG_DATA_HOME").map(|data| data.join("containers/storage")),
        variable("HOME").map(|home| home.join(".local/share/containers/storage")),
        Some(PathBuf::from("/var/lib/containers/storage")),
    ];
    let is_storage =
        |root: &PathBuf| ["overlay", "overlay-layers", "overlay-images"].iter().all(|name| root.join(name).is_dir());
    candidates.into_iter().flatten().find(is_storage)
}

/// Two folders of one file system, both reached through a mount of this process' own.
pub(super) struct SideBySide {
    _mount: OwnedFd,
    /// The composefs repository.
    pub(super) repository: PathBuf,
    /// podman's storage.
    pub(super) storage: PathBuf,
}

impl SideBySide {
    /// Both folders without what is mounted on `storage/overlay`. `None` if that is not what keeps them apart, or
    /// this user may not do it: then whatever can be shared is shared without this.
    pub(super) fn new(repository: &Path, storage: &Path) -> Option<Self> {
        let repository = repository.canonicalize().ok()?;
        let storage = storage.canonicalize().ok()?;
        let mount = mount_id(&repository).ok()?;
        if mount_id(&storage).ok()? != mount || mount_id(&storage.join("overlay")).ok()? == mount {
            return None;
        }
        let is_here = |dir: &&Path| mount_id(dir).is_ok_and(|id| id == mount);
        let mount_point = repository.ancestors().take_while(is_here).last()?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = rustix::mount::open_tree(CWD, mount_point, flags).ok()?;
        let inside = |path: &Path| {
            let path = path.strip_prefix(mount_point).ok()?;
            Some(Path::new("/proc/self/fd").join(clone.as_raw_fd().to_string()).join(path))
        };
        let both = Self { repository: inside(&repository)?, storage: inside(&storage)?, _mount: clone };
        // What is mounted there may be a disk of its own after all, with an empty folder below.
        let seen = storage.join("overlay").metadata().ok()?;
        let below = both.storage.join("overlay").metadata().ok()?;
        ((seen.dev(), seen.ino()) == (below.dev(), below.ino())).then_some(both)
    }
}

/// Which mount a path is on.
fn mount_id(path: &Path) -> io::Result<u64> {
    Ok(rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id)
}
