//! Where lazyroot keeps things: data that lasts (`LAZYROOT_HOME`, else `$XDG_DATA_HOME/lazyroot`) and what
//! lives as long as a VM or a mount (`$XDG_RUNTIME_DIR/lazyroot`). All of it is private to the user (0700).

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The two state folders.
#[derive(Clone, Debug)]
pub struct Home {
    data: PathBuf,
    runtime: PathBuf,
}

impl Home {
    /// The folders that the environment asks for, made if they are not there.
    ///
    /// # Errors
    /// If a folder cannot be made, or is another user's or open to others.
    pub fn open() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let chosen = set("LAZYROOT_HOME");
        let data = match (&chosen, set("XDG_DATA_HOME"), set("HOME")) {
            (Some(home), ..) => home.clone(),
            (None, Some(data), _) => data.join("lazyroot"),
            (None, None, Some(home)) => home.join(".local/share/lazyroot"),
            (None, None, None) => bail!("cannot tell where to keep data: set LAZYROOT_HOME, XDG_DATA_HOME or HOME"),
        };
        // Sockets need a short path; without XDG_RUNTIME_DIR the data folder is the one place that is surely ours.
        let runtime = match (chosen, set("XDG_RUNTIME_DIR")) {
            (None, Some(runtime)) => runtime.join("lazyroot"),
            _ => data.join("run"),
        };
        let data = std::path::absolute(data)?;
        let runtime = std::path::absolute(runtime)?;
        private_dir(&data)?;
        private_dir(&runtime)?;
        Ok(Self { data, runtime })
    }

    /// The default composefs repository.
    pub fn repository(&self) -> PathBuf {
        self.data.join("repository")
    }

    /// A folder for data that lasts, made if it is not there.
    pub fn data_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.data.join(name);
        private_dir(&dir)?;
        Ok(dir)
    }

    /// A folder for sockets and pids, made if it is not there.
    pub fn runtime_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.runtime.join(name);
        private_dir(&dir)?;
        Ok(dir)
    }
}

/// Makes `dir` and its parents; refuses one that others may enter.
pub fn private_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let meta = fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        bail!(
            "{} belongs to user {}, not to you ({me}): set LAZYROOT_HOME to a folder of your own",
            dir.display(),
            meta.uid()
        );
    }
    if meta.permissions().mode() & 0o077 != 0 {
        let shown = dir.display();
        bail!(
            "{shown} is open to other users: 'chmod 700 {shown}', or set LAZYROOT_HOME to a folder that is not there yet"
        );
    }
    Ok(())
}
