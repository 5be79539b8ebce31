//! lazyroot's own files beside a repository's: `<repository>/lazyroot/{index,facts,config,refs,leaves,profiles,traces,tmp}`.
//!
//! All of them can be made again from the repository or a new import, so a repository that cannot be written
//! is no reason to fail: callers keep what they computed in memory.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// Temporary files older than this belong to no process that still writes them.
const STALE: Duration = Duration::from_secs(3600);

/// The folder in a repository; composefs leaves names that it does not know alone.
#[derive(Clone, Debug)]
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(super) fn new(repository: &Path) -> Self {
        Self { dir: repository.join("lazyroot") }
    }

    /// Files in a folder that is lazyroot's alone.
    pub(super) fn in_folder(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(name))
    }

    /// Puts `bytes` at `name` so that a reader sees the old file or the whole new one. A crash of the machine
    /// may lose them, so readers must validate.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write_with(name, bytes, |_| Ok(()))
    }

    /// Like [`Files::write`], and on disk when it returns.
    pub(super) fn write_durably(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write_with(name, bytes, File::sync_all)
    }

    fn write_with(&self, name: &str, bytes: &[u8], finish: fn(&File) -> io::Result<()>) -> io::Result<()> {
        let path = self.path(name);
        let temporary = self.dir.join("tmp");
        fs::create_dir_all(&temporary)?;
        fs::create_dir_all(path.parent().expect("a file's name has a folder before it"))?;
        // Readable like the objects are: a system-wide repository serves users who cannot write it.
        let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o644)).tempfile_in(&temporary)?;
        file.write_all(bytes)?;
        finish(file.as_file())?;
        file.persist(&path)?;
        finish(&File::open(path.parent().expect("made above"))?)
    }

    /// Makes or moves the symbolic link `path` so that a reader sees the old target or the new one.
    pub(super) fn replace_symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        let temporary = self.dir.join("tmp");
        fs::create_dir_all(&temporary)?;
        let link = tempfile::Builder::new().make_in(temporary, |at| std::os::unix::fs::symlink(target, at))?;
        link.persist(path)?;
        Ok(())
    }

    /// Removes a file; that it is not there is fine.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        remove_if_there(&self.path(name))
    }

    /// Removes temporary files that killed processes left behind.
    pub(super) fn sweep(&self) {
        for entry in fs::read_dir(self.dir.join("tmp")).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
            if matches!(age, Ok(Ok(age)) if age > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Removes a file; that it is not there is fine.
pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What is in a folder; nothing if it is not there.
pub(in crate::store) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(vec![]);
        }
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}
