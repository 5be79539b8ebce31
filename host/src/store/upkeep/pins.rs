//! Pins: what keeps an image, whatever its names, while something uses it.
//!
//! A pin is a locked file in the store, for a store may be used from several homes. The kernel unlocks it however its
//! process ends, so a file that nobody holds locked is a pin of the dead. It is locked before it has its name, so
//! that nobody ever sees a living one unlocked.
//!
//! What needs an image without a process, as a stopped VM with a disk does, has a file that names the image; a pin in
//! another folder says which, and holds as long as that does.

use std::fs::{self, File, TryLockError};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lazyroot_proto::ObjectId;
use serde::{Deserialize, Serialize};

use crate::store::files::list;
use crate::store::image::handle::Image;
use crate::store::repository::store::Store;

/// The folder of pins that need no process.
const HELD: &str = "held";

/// Keeps an image in its store until it is dropped.
#[derive(Debug)]
pub struct Pin {
    path: PathBuf,
    _lock: File,
}

impl Drop for Pin {
    fn drop(&mut self) {
        // One that stays is swept away by the next who looks.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a pin says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// What uses the image, for people: `VM web`.
    pub user: String,
    /// Its process, if it is one.
    pub pid: Option<u32>,
    /// A file that uses it by its id, if there is no process.
    #[serde(default)]
    pub holder: Option<PathBuf>,
    /// The image's id in hex.
    pub image: String,
}

impl PinRecord {
    /// What uses the image, for people.
    pub fn shown(&self) -> String {
        let user = crate::text::printable(&self.user);
        match self.pid {
            Some(pid) => format!("{user} (process {pid})"),
            None => format!("{user} (stopped)"),
        }
    }

    /// Whether what holds it without a process is there, or may be: another user's cannot be looked at, and a home that
    /// is not mounted now may come back.
    fn is_held(&self) -> bool {
        let Some(holder) = &self.holder else { return false };
        match fs::read(holder) {
            Ok(text) => text.windows(self.image.len()).any(|part| part == self.image.as_bytes()),
            // In a folder of its own among those of its kind.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                !holder.ancestors().nth(2).is_some_and(|kind| kind.is_dir())
            }
            Err(_) => true,
        }
    }
}

impl Store {
    /// Pins an image for `user`. `None` if the store cannot be written: then nobody of this user's rights can remove
    /// anything from it either.
    ///
    /// # Errors
    /// If the image was removed meanwhile.
    pub fn pin(&self, image: &Image, user: &str) -> Result<Option<Pin>> {
        let record =
            PinRecord { user: user.to_owned(), pid: Some(std::process::id()), holder: None, image: image.id.to_hex() };
        let pin = match self.write_pin(&record) {
            Ok(pin) => Some(pin),
            Err(error) => {
                let expected = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
                if !expected.contains(&error.kind()) {
                    tracing::warn!("cannot pin image {}: {error}; do not remove it while it is in use", image.id);
                }
                None
            }
        };
        // Garbage collection takes an image's link away before it looks for pins, so one of us sees the other.
        if fs::symlink_metadata(&image.manifest).is_err() {
            bail!("image {} was removed meanwhile: import it again", image.id);
        }
        Ok(pin)
    }

    /// Keeps an image for `user` as long as the file `holder` is there and has the image's id in it, whether anything runs
    /// or not.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn keep_while(&self, image: &Image, user: &str, holder: &Path) -> Result<()> {
        let holder = std::path::absolute(holder)?;
        let record = PinRecord { user: user.to_owned(), pid: None, holder: Some(holder), image: image.id.to_hex() };
        let mut hash = std::hash::DefaultHasher::new();
        (&record.holder, &record.image).hash(&mut hash);
        let file = format!("{HELD}/{:016x}", hash.finish());
        let written = self.files.write_durably(&file, &serde_json::to_vec(&record)?);
        written.with_context(|| format!("cannot note in {} that {user} uses an image", self.path().display()))
    }

    fn write_pin(&self, record: &PinRecord) -> io::Result<Pin> {
        let dir = self.files.path("pins");
        let temporary = self.files.path("tmp");
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&temporary)?;
        let mut file = tempfile::Builder::new().prefix("").rand_bytes(12).tempfile_in(temporary)?;
        file.as_file().lock()?;
        file.write_all(&serde_json::to_vec(record)?)?;
        let path = dir.join(file.path().file_name().expect("a file has a name"));
        let lock = file.persist_noclobber(&path)?;
        Ok(Pin { path, _lock: lock })
    }

    /// The pins of the living; those of the dead are removed.
    ///
    /// # Errors
    /// If the pins cannot be read: then nobody can tell what is in use.
    pub fn pins(&self) -> Result<Vec<PinRecord>> {
        let dir = self.files.path("pins");
        let mut pins = self.held()?;
        for path in list(&dir)? {
            let shown = path.display();
            let file = match File::open(&path) {
                Ok(file) => file,
                // Dropped this very moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot read the pin {shown}")),
            };
            match file.try_lock() {
                Ok(()) => {
                    let _ = fs::remove_file(&path);
                }
                Err(TryLockError::WouldBlock) => {
                    let text = fs::read(&path).with_context(|| format!("cannot read the pin {shown}"))?;
                    pins.push(serde_json::from_slice(&text).with_context(|| format!("the pin {shown} is damaged"))?);
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot look at the pin {shown}"));
                }
            }
        }
        Ok(pins)
    }

    /// The pins of what needs no process; those of what is gone are removed.
    fn held(&self) -> Result<Vec<PinRecord>> {
        let mut pins = Vec::new();
        for path in list(&self.files.path(HELD))? {
            let text = match fs::read(&path) {
                Ok(text) => text,
                // Somebody else removed it this very moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot read the pin {}", path.display())),
            };
            // One that is not whole was never said to be there.
            match serde_json::from_slice::<PinRecord>(&text) {
                Ok(pin) if pin.is_held() => pins.push(pin),
                _ => drop(fs::remove_file(&path)),
            }
        }
        Ok(pins)
    }

    /// Fails if something uses the image, saying what.
    pub(in crate::store) fn ensure_unused(&self, id: &ObjectId) -> Result<()> {
        let hex = id.to_hex();
        let pins = self.pins()?;
        let users: Vec<String> = pins.iter().filter(|pin| pin.image == hex).map(PinRecord::shown).collect();
        if !users.is_empty() {
            bail!("image {id} is in use by {}: end or remove that first", users.join(", "));
        }
        Ok(())
    }
}
