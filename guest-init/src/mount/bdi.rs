//! Backing devices, as the kernel calls them: how far it reads ahead on each mount.

use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use crate::ahead::runs::LONGEST_READ;

/// The name by which the kernel knows the mounted FUSE layer as a backing device.
pub fn fuse_bdi(data: &Path) -> Option<String> {
    // What the kernel knows without a request: the device.
    let known = AtFlags::from_bits_retain(libc::AT_STATX_DONT_SYNC as u32);
    let stat = rustix::fs::statx(rustix::fs::CWD, data, known, StatxFlags::empty()).ok()?;
    Some(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

/// The name by which the kernel knows the latest EROFS mount on a file as a backing device: a number that counts up. It
/// does not say which mount that is; whoever mounts at the same time has its readahead set, as we would do it.
pub fn latest_erofs_bdi() -> Option<String> {
    let names = fs::read_dir("/sys/class/bdi").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let numbered = names.filter_map(|name| Some((name.strip_prefix("erofs-")?.parse::<u64>().ok()?, name)));
    numbered.max().map(|(_, name)| name)
}

/// Lets the kernel read ahead as far as one FUSE READ reaches; it offers 128 KiB by itself. Best effort.
pub fn set_readahead(bdi: Option<String>) {
    let Some(bdi) = bdi else { return };
    let _ = fs::write(format!("/sys/class/bdi/{bdi}/read_ahead_kb"), (LONGEST_READ >> 10).to_string());
}
