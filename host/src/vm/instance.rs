//! A running VM's folder: its sockets and logs, its name, and a lock that tells the living from the dead.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::store::Image;

/// What `vm.json` says about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The VM's name.
    pub name: String,
    /// The lazyroot process that runs it.
    pub pid: u32,
    /// The image's manifest digest.
    pub image: String,
}

/// A VM's folder, removed when dropped.
pub struct Instance {
    record: Record,
    dir: PathBuf,
    /// Locked as long as the VM lives; the kernel unlocks it however we end.
    _lock: File,
}

impl Instance {
    /// A fresh folder for a VM, after sweeping away those of VMs that died with their lazyroot.
    ///
    /// # Errors
    /// If the name is taken by a running VM, or is no good as a host name.
    pub fn create(home: &Home, name: Option<&str>, image: &Image) -> Result<Self> {
        Self::create_in(&home.runtime_dir("vm")?, name, image.id.to_string())
    }

    fn create_in(parent: &Path, name: Option<&str>, image: String) -> Result<Self> {
        // One launch at a time from here on: a folder must not be swept between its making and its locking, nor a
        // name be given twice.
        let launching = File::open(parent)?;
        launching.lock().context("cannot lock the folder of VMs")?;
        let running = sweep(parent)?;
        // Short and unique among the living: the folder's name is part of every socket's address.
        let dir = tempfile::Builder::new().prefix("").rand_bytes(6).tempdir_in(parent)?;
        let name = match name {
            Some(name) => check_name(name)?,
            None => format!("vm-{}", dir.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase()),
        };
        if let Some(other) = running.iter().find(|record| record.name == name) {
            bail!("a VM named '{name}' is running already (process {}): choose another --name", other.pid);
        }
        let lock = File::create(dir.path().join("lock"))?;
        lock.lock().context("cannot lock the VM's folder")?;
        let record = Record { name, pid: std::process::id(), image };
        fs::write(dir.path().join("vm.json"), serde_json::to_vec(&record)?).context("cannot write the VM's folder")?;
        Ok(Self { record, dir: dir.keep(), _lock: lock })
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // A folder that stays is swept away by the next launch.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A name that is good for a VM, a host and a command line.
fn check_name(name: &str) -> Result<String> {
    let fits = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !fits {
        bail!("'{name}' is no name for a VM: use 1 to 63 letters, digits and inner hyphens, as in a host name");
    }
    Ok(name.to_owned())
}

/// Removes the folders of dead VMs; returns the records of the living.
fn sweep(parent: &Path) -> Result<Vec<Record>> {
    let mut living = Vec::new();
    for entry in fs::read_dir(parent)? {
        let dir = entry?.path();
        // One without a lock was left half-made, and is empty. What is no folder stays.
        let Ok(lock) = File::open(dir.join("lock")) else {
            let _ = fs::remove_dir(&dir);
            continue;
        };
        match lock.try_lock() {
            Ok(()) => {
                let _ = fs::remove_dir_all(&dir);
            }
            Err(TryLockError::WouldBlock) => {
                let record = fs::read(dir.join("vm.json")).ok();
                living.extend(record.and_then(|text| serde_json::from_slice::<Record>(&text).ok()));
            }
            Err(TryLockError::Error(error)) => return Err(error).context("cannot look at a VM's lock"),
        }
    }
    Ok(living)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hosts() {
        assert!(["a", "web-1", "A9"].iter().all(|name| check_name(name).is_ok()));
        assert!(["", "-a", "a-", "a b", "a/b", "ä", &"x".repeat(64)].iter().all(|name| check_name(name).is_err()));
    }

    #[test]
    fn launches_at_the_same_time_do_not_disturb_one_another() {
        let parent = tempfile::tempdir().unwrap();
        let launch = |name: Option<&str>| Instance::create_in(parent.path(), name, "i".into());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let instance = launch(None).unwrap();
                        assert!(instance.dir().join("vm.json").exists());
                    }
                });
            }
            let named: Vec<_> = (0..8).map(|_| scope.spawn(|| launch(Some("web")))).collect();
            let named: Vec<_> = named.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(named.iter().filter(|launched| launched.is_ok()).count(), 1);
        });
    }

    #[test]
    fn the_dead_are_swept_away_and_the_living_listed() {
        let parent = tempfile::tempdir().unwrap();
        let record = Record { name: "x".into(), pid: 1, image: "i".into() };
        let make = |name: &str| {
            let dir = parent.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("vm.json"), serde_json::to_vec(&record).unwrap()).unwrap();
            File::create(dir.join("lock")).unwrap()
        };
        let living = make("living");
        living.lock().unwrap();
        drop(make("dead"));
        assert_eq!(sweep(parent.path()).unwrap(), [record]);
        assert!(parent.path().join("living").exists() && !parent.path().join("dead").exists());
    }
}
