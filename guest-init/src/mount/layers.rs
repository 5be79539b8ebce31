//! The layers of a mounted image, and overlayfs over them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::MountAttrFlags;

use crate::mount::fs_context::FsContext;
use crate::mount::loopdev;
use crate::mount::upper::UpperLayer;

/// What EROFS reads from.
#[derive(PartialEq, Eq)]
pub enum Backing {
    /// The image file.
    File,
    /// A loop device on it, which has pages of its own.
    Loop,
}

/// EROFS on the image file at `image`.
pub fn erofs(image: &Path) -> Result<(OwnedFd, Backing)> {
    let mount = |source: &str| {
        let erofs = FsContext::open("erofs", "it needs CONFIG_EROFS_FS (module erofs)")?;
        // Reads go from the image file straight into EROFS' page cache, and asynchronously, so that one fails as a whole.
        // Kernels that do not know the word always do so (6.12) or have a loop device, which sees to failures itself.
        let _ = erofs.flag("directio");
        erofs.flag("ro")?.set("source", source)?.create(MountAttrFlags::MOUNT_ATTR_RDONLY)
    };
    match mount(&image.to_string_lossy()) {
        // Kernels before 6.12 want a block device.
        Err(error) if error.downcast_ref() == Some(&rustix::io::Errno::NOTBLK) => {
            let device = loopdev::attach(Path::new("/dev"), &File::open(image)?)
                .context("this kernel cannot mount EROFS from a file (6.12 can), and offers no loop device instead")?;
            Ok((mount(&device.path().to_string_lossy())?, Backing::Loop))
        }
        other => Ok((other?, Backing::File)),
    }
}

/// `/dev/fuse`, opened, and the mount that it serves.
pub fn fuse() -> Result<(OwnedFd, OwnedFd)> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context("cannot open /dev/fuse: the kernel needs CONFIG_FUSE_FS (module fuse)")?;
    let fuse = FsContext::open("fuse", "it needs CONFIG_FUSE_FS (module fuse)")?;
    let mount = fuse
        .set("source", "lazyroot")?
        .set("subtype", "lazyroot")?
        .set("fd", &device.as_raw_fd().to_string())?
        .set("rootmode", "40555")?
        .set("user_id", &rustix::process::getuid().as_raw().to_string())?
        .set("group_id", &rustix::process::getgid().as_raw().to_string())?
        .flag("allow_other")?
        .create(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    Ok((device.into(), mount))
}

/// overlayfs over the `metadata` layer, the `data` layers in their order, and `upper` for changes, if there is one.
pub fn overlay(metadata: &Path, data: &[&Path], upper: Option<&UpperLayer>) -> Result<OwnedFd> {
    let overlay = FsContext::open("overlay", "it needs CONFIG_OVERLAY_FS (module overlay)")?;
    // A double colon marks a data-only layer.
    let lower = data.iter().fold(escape(metadata), |lower, data| format!("{lower}::{}", escape(data)));
    // Not "composefs:...": units of bootc and ostree key on that name.
    overlay
        .set("source", "lazyroot")?
        .set("metacopy", "on")?
        .set("redirect_dir", "on")?
        .set("lowerdir", &lower)
        .context("overlayfs needs data-only lower layers (Linux 6.5)")?;
    let attributes = match upper {
        None => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Some(upper) => {
            upper.prepare(metadata)?;
            overlay.set("upperdir", &escape(&upper.changes()))?.set("workdir", &escape(&upper.work()))?;
            if upper.is_memory() {
                // The upper layer is memory: nothing to sync.
                overlay.flag("volatile")?;
            }
            MountAttrFlags::empty()
        }
    };
    overlay.create(attributes)
}

/// A path as overlayfs's options want it: colons, commas and backslashes escaped.
fn escape(path: &Path) -> String {
    let mut text = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | ',' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}
