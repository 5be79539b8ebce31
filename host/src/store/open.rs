//! Opening a store, which makes one where there is none.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

use super::repository::store::{META, Store};
use super::write::composefs;
use crate::home::Home;

impl Store {
    /// Opens the repository at `path`, or the default one in `home`. The default one, and one at a `path`
    /// that is empty or not there, is made: SHA-256, fs-verity not demanded of the file system.
    ///
    /// # Errors
    /// If there is something else at `path`, or it cannot be read.
    pub fn open(home: &Home, path: Option<&Path>) -> Result<Self> {
        match path {
            Some(path) => Self::at(path),
            None => Self::at(home.repository()?),
        }
    }

    /// Opens the repository at `path`, see [`Store::open`].
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let path = std::path::absolute(path)?;
        match fs::metadata(path.join(META)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_vacant(&path)? => {
                composefs::create(&path).with_context(|| format!("cannot make a store at {}", path.display()))?;
            }
            _ => {}
        }
        Self::open_existing(path)
    }
}

/// Whether a store may be made here: nothing is there, or an empty folder.
fn is_vacant(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot look into {}", path.display())),
    }
}
