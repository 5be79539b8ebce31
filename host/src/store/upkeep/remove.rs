//! Removing images and their names.

use anyhow::Result;

use crate::store::files::remove_if_there;
use crate::store::image::index;
use crate::store::repository::store::Store;
use crate::store::write::composefs;

/// What became of an image that was removed by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The image has other names and stays.
    Untagged {
        /// Those names.
        remaining: Vec<String>,
    },
    /// The image is gone; its objects stay until garbage collection.
    Image,
}

impl Store {
    /// Takes a name away, and with the last one the image; a digest takes all of the image's names. Objects stay
    /// until garbage collection, for other images may have them too.
    ///
    /// # Errors
    /// If there is no such image, it is in use and would lose its last name, or the repository cannot be written.
    pub fn remove(&self, text: &str) -> Result<Removal> {
        let (id, names) = if let Some((name, id)) = self.find_name(text)? {
            (id, vec![name])
        } else if let Some(id) = self.find_digest(text)? {
            (id, self.names_of(&id)?)
        } else {
            return Err(self.unknown(text));
        };
        self.ensure_changeable()?;
        let _lock = self.lock()?;
        if self.names_of(&id)?.iter().all(|name| names.contains(name)) {
            self.ensure_unused(&id)?;
        }
        for name in &names {
            composefs::forget_name(self, name)?;
            remove_if_there(&self.name_path(name))?;
            self.files.remove(&format!("refs/{name}"))?;
        }
        let remaining = self.names_of(&id)?;
        if remaining.is_empty() {
            remove_if_there(&self.manifest(&id))?;
            for folder in index::FOLDERS {
                self.files.remove(&format!("{folder}/{}", id.to_hex()))?;
            }
            return Ok(Removal::Image);
        }
        Ok(Removal::Untagged { remaining })
    }
}
