//! The disk that holds a guest's upper layer: found by its serial number, formatted if it is blank, mounted, and grown
//! to what the host made of it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lazyroot_proto::boot::UPPER_DISK;
use rustix::mount::MountFlags;

use crate::mount::{ext4, scratch};
use crate::sys;

/// The block device with the upper layer.
///
/// # Errors
/// If there is none.
pub fn find() -> Result<PathBuf> {
    let devices = fs::read_dir("/sys/block").context("cannot list the disks")?.flatten();
    let serial = |path: &Path| fs::read_to_string(path.join("serial")).unwrap_or_default();
    let mut names =
        devices.filter(|device| serial(&device.path()).trim() == UPPER_DISK).map(|device| device.file_name());
    let name = names.next().context("the disk for changes is not there")?;
    Ok(Path::new("/dev").join(name))
}

/// Formats `device` if it is blank.
///
/// # Errors
/// If it cannot be read or written.
pub fn make_ready(device: &Path) -> Result<()> {
    let disk = File::options().read(true).write(true).open(device);
    let make = |disk: File| if ext4::is_blank(&disk)? { format(&disk) } else { Ok(()) };
    disk.and_then(make).with_context(|| format!("cannot format the disk {} for changes", device.display()))
}

/// Mounts the ext4 on `device`, which fills the device then.
///
/// # Errors
/// If it cannot be mounted, or grown.
pub fn mount(device: &Path, dir: &Path) -> Result<()> {
    let shown = device.display();
    // The tables of groups that the kernel adds are zero already: it need not clear them, and the disk stays sparse; so
    // it does where something is removed.
    rustix::mount::mount(device, dir, "ext4", MountFlags::NOATIME, c"noinit_itable,discard")
        .with_context(|| format!("cannot mount the disk {shown} for changes"))?;
    let grow = || {
        let mut disk = File::open(device)?;
        let could_have = disk.seek(SeekFrom::End(0))? / ext4::BLOCK as u64;
        if could_have > ext4::blocks(&disk)? { sys::grow_ext4(&File::open(dir)?, could_have) } else { Ok(()) }
    };
    grow().with_context(|| format!("cannot grow the file system on {shown} to the disk's size"))
}

/// Where programs keep containers, whose own overlays could not be on the image's: folders of the disk's own take their
/// place, where the image (mounted at `target`) has one for them. Best effort: only containers would miss them.
pub fn lend_folders(upper: &Path, target: &Path) {
    for place in scratch::empty_folders(target) {
        let own = upper.join(place.file_name().unwrap_or_default());
        let made = own.is_dir() || fs::DirBuilder::new().mode(0o711).create(&own).is_ok();
        if made {
            let _ = rustix::mount::mount_bind(&own, &place);
        }
    }
}

fn format(disk: &File) -> io::Result<()> {
    let mut uuid = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut uuid)?;
    // Version 4 and its variant (RFC 9562): a random one.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ext4::format(disk, uuid, u32::try_from(now).unwrap_or(u32::MAX))
}
