//! Where lazyroot keeps things: data that lasts (`LAZYROOT_HOME`, else `$XDG_DATA_HOME/lazyroot`) and what
//! lives as long as a VM or a mount (`$XDG_RUNTIME_DIR/lazyroot`). All that is in them is private to the user (0700).

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
        own_dir(&data)?;
        own_dir(&runtime)?;
        Ok(Self { data, runtime })
    }

    /// Where data that lasts is.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder of the default composefs repository, made if it is not there.
    pub fn repository(&self) -> Result<PathBuf> {
        self.data_dir("repository")
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

/// Makes `dir` and its parents, private to the user; refuses one that is there and another user's.
fn own_dir(dir: &Path) -> Result<fs::Metadata> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let meta = fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let (owner, me) = (meta.uid(), rustix::process::geteuid().as_raw());
    if owner != me {
        bail!(
            "{} belongs to user {owner}, not to you ({me}): set LAZYROOT_HOME to a folder of your own",
            dir.display()
        );
    }
    Ok(meta)
}

/// Makes `dir` and its parents; refuses one that others own or may enter.
pub fn private_dir(dir: &Path) -> Result<()> {
    if own_dir(dir)?.permissions().mode() & 0o077 != 0 {
        bail!("{0} is open to other users: 'chmod 700 {0}', or set LAZYROOT_HOME to another folder", dir.display());
    }
    Ok(())
}
