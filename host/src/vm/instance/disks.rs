//! VMs that keep what their guest writes: each has a folder of its own among the data, with a sparse disk for the upper
//! layer and the command line that it was made by. The image is shared and never changes.
//!
//! A disk is made in a time that does not depend on its size: it is a hole, which the guest formats when it first finds
//! it. No program here or in the image is needed for that. Copies share blocks where the file system can (reflinks),
//! and are sparse elsewhere.

use std::fs::{self, File, TryLockError};
use std::io::{self, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::boot::UPPER_DISK_BYTES;
use serde::{Deserialize, Serialize};

use crate::durable::{rename_durably, rename_unsynced, sync};
use crate::home::Home;
use crate::store::{Image, Store};

/// The disk's name in a folder.
const DISK: &str = "disk.raw";

/// What the names of folders begin with that are being made or removed.
const UNFINISHED: &str = ".unfinished-";

/// The name of what it is made of.
const SAVED: &str = "vm.json";

/// How long a claim waits for another to end: a process that ends lets go of its locks one by one.
const CLAIM_DEADLINE: Duration = Duration::from_secs(2);

/// What such a VM is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The command line of `run` that made it.
    pub arguments: Vec<String>,
    /// The folder that its relative paths are relative to.
    pub folder: PathBuf,
    /// `--store`, or what stood for it.
    pub store: Option<PathBuf>,
    /// The image's digest: its name may come to mean another.
    pub image: String,
    /// What `update` changed since.
    pub cpus: Option<u32>,
    /// In MiB.
    pub memory_mib: Option<u32>,
    /// A release.
    pub kernel: Option<String>,
}

/// The persistent VMs of a home.
pub struct Disks(PathBuf);

impl Disks {
    /// Those of this home.
    ///
    /// # Errors
    /// If their folder cannot be made.
    pub fn open(home: &Home) -> Result<Self> {
        Ok(Self(home.data_dir("vms")?))
    }

    #[cfg(test)]
    pub(super) fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            // One without is half-made.
            if entry.path().join(SAVED).exists() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// What the VM is made of.
    ///
    /// # Errors
    /// If there is no such VM.
    pub fn get(&self, name: &str) -> Result<Saved> {
        let text = fs::read(self.dir(name).join(SAVED));
        let text = text.with_context(|| format!("there is no VM '{name}' that was made with --persist"))?;
        serde_json::from_slice(&text).with_context(|| format!("VM '{name}' was saved by another version"))
    }

    /// Its disk.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.dir(name).join(DISK)
    }

    /// A new one with an empty disk of `bytes`.
    ///
    /// # Errors
    /// If the name is taken, or the disk cannot be made; nothing is left then.
    pub fn create(&self, name: &str, saved: &Saved, bytes: u64) -> Result<()> {
        check_size(bytes)?;
        self.make(name, saved, |disk| make_blank(disk, bytes))
    }

    /// Keeps everybody else from using the disk, copying or removing it, as long as the file is open. `None` if there is
    /// no such VM.
    ///
    /// # Errors
    /// If somebody does just now.
    pub fn claim(&self, name: &str) -> Result<Option<File>> {
        let lock = match File::create(self.dir(name).join("lock")) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("cannot lock the VM's folder"),
        };
        let begin = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) if begin.elapsed() < CLAIM_DEADLINE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    bail!(
                        "the disk of VM '{name}' is in use or being copied by another lazyroot: try again when that is done"
                    )
                }
                Err(TryLockError::Error(error)) => return Err(error).context("cannot lock the VM's folder"),
            }
        }
    }

    /// Has the image stay in the store as long as the VM is there.
    pub fn keep_image(&self, name: &str, store: &Store, image: &Image) {
        if let Err(error) = store.keep_while(image, &format!("VM {name}"), &self.dir(name).join(SAVED)) {
            tracing::warn!("{error:#}; do not remove image {} while VM '{name}' is there", image.id);
        }
    }

    /// A new one with a copy of another's disk, as it is or as it was at a snapshot.
    ///
    /// # Errors
    /// As [`Self::create`], or if there is no such VM or snapshot.
    pub fn fork(&self, from: &str, snapshot: Option<&str>, name: &str) -> Result<()> {
        let saved = self.get(from)?;
        let source = match snapshot {
            None => self.disk(from),
            Some(snapshot) => self.snapshot_path(from, snapshot)?,
        };
        ensure!(source.exists(), "VM '{from}' has no snapshot '{}'", snapshot.unwrap_or_default());
        self.make(name, &saved, |disk| clone(&source, disk))
    }

    fn make(&self, name: &str, saved: &Saved, disk: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let dir = self.dir(name);
        ensure!(!dir.join(SAVED).exists(), "there is a VM '{name}' already: 'lazyroot rm {name}', or another name");
        let _at_work = self.tidy()?;
        // Under another name until it is whole, and on the host's disk.
        let fresh = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.0)?;
        disk(&fresh.path().join(DISK))?;
        fs::write(fresh.path().join(SAVED), serde_json::to_vec_pretty(saved)?)?;
        for part in [DISK, SAVED, "."] {
            sync(&fresh.path().join(part))?;
        }
        rename_durably(fresh.path(), &dir, || format!("cannot make {}", dir.display()))?;
        // It has moved.
        let _ = fresh.keep();
        Ok(())
    }

    /// Clears away what was left half-made or half-removed by a process that was killed. While the file is open, nobody
    /// else does.
    fn tidy(&self) -> Result<File> {
        let folder = File::open(&self.0)?;
        if folder.try_lock().is_ok() {
            for entry in fs::read_dir(&self.0)?.flatten() {
                if entry.file_name().as_bytes().starts_with(UNFINISHED.as_bytes()) {
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }
        folder.lock_shared().context("cannot lock the folder of VMs")?;
        Ok(folder)
    }

    /// Changes what a VM is made of.
    ///
    /// # Errors
    /// If there is no such VM, or it cannot be written.
    pub fn set(&self, name: &str, saved: &Saved) -> Result<()> {
        self.get(name)?;
        let mut file = tempfile::NamedTempFile::new_in(self.dir(name))?;
        serde_json::to_writer_pretty(&mut file, saved)?;
        file.as_file().sync_all()?;
        file.persist(self.dir(name).join(SAVED)).context("cannot write the VM's folder")?;
        sync(&self.dir(name))
    }

    /// Makes the disk larger; the guest's file system follows at the next start.
    ///
    /// # Errors
    /// If it would become smaller.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<()> {
        self.get(name)?;
        check_size(bytes)?;
        let file = File::options().write(true).open(self.disk(name))?;
        let now = file.metadata()?.len();
        ensure!(bytes >= now, "the disk of VM '{name}' has {} MiB already, and cannot shrink", now >> 20);
        file.set_len(bytes).with_context(|| format!("cannot make the disk of VM '{name}' larger"))
    }

    /// Keeps the disk as it is now under a name.
    ///
    /// # Errors
    /// If the name is taken or no good, or the disk cannot be copied.
    pub fn snapshot(&self, name: &str, snapshot: &str) -> Result<()> {
        self.get(name)?;
        let path = self.snapshot_path(name, snapshot)?;
        ensure!(!path.exists(), "VM '{name}' has a snapshot '{snapshot}' already");
        let folder = path.parent().expect("it is in a folder");
        fs::create_dir_all(folder)?;
        let partial = path.with_extension("part");
        // Of one that was killed.
        let _ = fs::remove_file(&partial);
        let copied = clone(&self.disk(name), &partial).and_then(|()| sync(&partial));
        copied.inspect_err(|_| drop(fs::remove_file(&partial)))?;
        rename_durably(&partial, &path, || "cannot keep the snapshot".to_owned())
    }

    fn snapshot_path(&self, name: &str, snapshot: &str) -> Result<PathBuf> {
        let fits = snapshot.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') && !snapshot.is_empty();
        ensure!(fits, "'{snapshot}' is no name for a snapshot: use letters, digits and hyphens");
        Ok(self.dir(name).join("snapshots").join(format!("{snapshot}.raw")))
    }

    /// Removes the VM, its disk and its snapshots.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _at_work = self.tidy()?;
        // At once, whatever becomes of us.
        let away = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.0)?;
        match rename_unsynced(self.dir(name), away.path().join("vm")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.dir(name).display()))
            }
            _ => away.close().with_context(|| format!("cannot remove the disk of VM '{name}'")),
        }
    }
}

/// Makes a sparse file.
fn make_blank(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("cannot make a disk of {} MiB at {}", bytes >> 20, path.display()))
}

/// # Errors
/// If the guest could not format a disk of that size, or use all of it.
fn check_size(bytes: u64) -> Result<()> {
    let (least, most) = (UPPER_DISK_BYTES.start() >> 20, UPPER_DISK_BYTES.end() >> 40);
    let mib = bytes >> 20;
    ensure!(UPPER_DISK_BYTES.contains(&bytes), "a disk of {mib} MiB cannot be: give {least} MiB to {most} TiB");
    Ok(())
}

/// Copies a disk: by sharing its blocks, else by copying those that are there.
fn clone(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let target = File::create_new(to).with_context(|| format!("cannot make {}", to.display()))?;
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    copy_sparse(&source, &target).with_context(|| format!("cannot copy {}", from.display()))
}

fn copy_sparse(source: &File, target: &File) -> io::Result<()> {
    use std::io::{Read, Seek, Write};
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let (mut source, mut target) = (source, target);
    let mut at = 0;
    while at < len {
        let data = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(data))?;
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        io::copy(&mut source.take(end - data), &mut target)?;
        at = end;
    }
    target.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn disks_are_sparse_and_their_copies_too() {
        let home = tempfile::tempdir().unwrap();
        let disks = Disks(home.path().to_owned());
        let saved = Saved {
            arguments: vec!["run".into()],
            folder: "/".into(),
            store: None,
            image: "i".into(),
            cpus: None,
            memory_mib: None,
            kernel: None,
        };
        disks.create("a", &saved, 16 << 30).unwrap();
        assert!(disks.create("a", &saved, 16 << 30).is_err() && disks.create("b", &saved, 1 << 20).is_err());
        let taken = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
        assert_eq!(taken(&disks.disk("a")), 0);
        File::options().write(true).open(disks.disk("a")).unwrap().write_all_at(b"mark", 10 << 30).unwrap();
        disks.snapshot("a", "s").unwrap();
        assert!(disks.snapshot("a", "s").is_err() && disks.snapshot("a", "../x").is_err());
        disks.fork("a", None, "b").unwrap();
        disks.fork("b", None, "c").unwrap();
        disks.fork("a", Some("s"), "d").unwrap();
        assert!(disks.fork("a", Some("none"), "e").is_err() && disks.fork("none", None, "e").is_err());
        for name in ["b", "c", "d"] {
            let mut mark = [0; 4];
            File::open(disks.disk(name)).unwrap().read_exact_at(&mut mark, 10 << 30).unwrap();
            assert_eq!((&mark, taken(&disks.disk(name)) < 1 << 20), (b"mark", true));
        }
        disks.resize("a", 20 << 30).unwrap();
        assert!(disks.resize("a", 10 << 30).is_err());
        assert_eq!(disks.names().unwrap(), ["a", "b", "c", "d"]);
        disks.remove("a").unwrap();
        assert_eq!(disks.names().unwrap(), ["b", "c", "d"]);
    }
}
