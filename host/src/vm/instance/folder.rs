//! The folder of a VM in the hands of the process that runs the VM, and the lock that tells the living from the dead.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

use crate::vm::instance::record::{End, Record, read_json, write_json};

/// Whether a VM lives.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Its lazyroot runs.
    Alive,
    /// It ended, and lazyroot took down how.
    Ended(End),
    /// Its lazyroot is gone without a word: killed, or the host crashed.
    Lost,
    /// It keeps what its guest writes, and was not started since the host was, or at all.
    Stopped,
}

/// A VM's folder, in the hands of the process that runs the VM. Dropping it removes the folder, unless it is to stay.
pub struct Instance {
    pub(super) record: Record,
    pub(super) dir: PathBuf,
    /// Locked as long as the VM lives; the kernel unlocks it however we end.
    pub(super) _lock: File,
}

impl Instance {
    /// What it is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// From now on the folder stays when the VM has ended.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub fn keep(&mut self) -> Result<()> {
        self.record.keep = true;
        self.write_record()
    }

    /// Takes down how the VM ended; only for a folder that stays.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn end(&self, end: &End) -> Result<()> {
        if self.record.keep { write_json(&self.dir, "end.json", end) } else { Ok(()) }
    }

    pub(super) fn write_record(&self) -> Result<()> {
        write_json(&self.dir, "vm.json", &self.record)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.record.keep {
            // What only a living VM uses.
            for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| !kind.is_file()) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        } else {
            // A folder that stays is swept away by the next launch.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Whether the VM of a folder lives; `None` if there is no VM in it, or not any more.
pub(super) fn state(dir: &Path) -> Result<Option<State>> {
    let lock = match File::open(dir.join("lock")) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", dir.join("lock").display())),
    };
    // Shared, so that two who look at the same time do not take each other for the VM.
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(State::Alive)),
        Err(error) => Err(error).context("cannot look at a VM's lock"),
        Ok(()) => Ok(Some(read_json(&dir.join("end.json")).map_or(State::Lost, State::Ended))),
    }
}

/// Removes the folders of dead VMs that nobody asked to keep. Only while launches are held.
pub(super) fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let dir = entry?.path();
        // One without a lock was left half-made, and is empty. What is no folder stays.
        let Ok(lock) = File::open(dir.join("lock")) else {
            let _ = fs::remove_dir(&dir);
            continue;
        };
        match lock.try_lock() {
            Ok(()) => {
                let record: Option<Record> = read_json(&dir.join("vm.json"));
                if !record.is_some_and(|record| record.keep) {
                    let _ = fs::remove_dir_all(&dir);
                }
            }
            Err(TryLockError::WouldBlock) => (),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot look at a VM's lock"),
        }
    }
    Ok(())
}
