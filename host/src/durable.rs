//! Renames, and what makes them outlive a power cut. This is the one module that calls `std::fs::rename`: a name alone is
//! not on the disk until its folder was synced, so each caller says here which of the two it needs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes what a file holds, or which names a folder has, to the disk.
///
/// # Errors
/// If it cannot be opened or written.
pub(crate) fn sync(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.with_context(|| format!("cannot write {} to the disk", path.display()))
}

/// Renames a file or folder, whose content is on the disk already, and writes its new name to the disk. `failure` is what
/// the error says if it cannot be renamed.
///
/// # Errors
/// If it cannot be renamed, or the folder cannot be written.
pub(crate) fn rename_durably(from: &Path, to: &Path, failure: impl FnOnce() -> String) -> Result<()> {
    rename_unsynced(from, to).with_context(failure)?;
    sync(to.parent().context("a name has a folder before it")?)
}

/// Renames a file or folder. After a power cut it may have its old name: right for what can be made again, is moved aside,
/// or does not outlive the host's boot.
///
/// # Errors
/// As [`std::fs::rename`].
#[expect(clippy::disallowed_methods, reason = "the one place that is meant to")]
pub(crate) fn rename_unsynced(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    fs::rename(from, to)
}
