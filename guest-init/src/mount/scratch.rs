//! Folders in which programs keep containers.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

/// Where programs keep containers. On the image's overlay their own overlays could not be; a tmpfs can hold them.
const SCRATCH: &[&str] = &["var/lib/containers", "var/lib/docker"];

/// The folders for containers below `sysroot`, where the image has a place for them and nothing in it.
pub fn empty_folders(sysroot: &Path) -> Vec<PathBuf> {
    let places = SCRATCH.iter().map(|name| sysroot.join(name));
    places
        .filter(|dir| match fs::read_dir(dir) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => dir.parent().is_some_and(Path::is_dir) && fs::create_dir(dir).is_ok(),
        })
        .collect()
}

/// Makes room for containers in memory. Best effort: only containers would miss it.
pub fn mount_tmpfs(sysroot: &Path) {
    for dir in empty_folders(sysroot) {
        let _ = mount("tmpfs", &dir, "tmpfs", MountFlags::NODEV, c"mode=711");
    }
}
