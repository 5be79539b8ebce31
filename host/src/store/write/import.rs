//! Importing: an image is brought in, written to disk, and named.

use anyhow::Result;

use super::composefs;
use super::request::{ImportRequest, Rehash};
use super::source::Source;
use crate::store::image::handle::Image;
use crate::store::progress::Progress;
use crate::store::repository::store::Store;

impl Store {
    /// Brings an image into the store and names it: `name`, or one made from the source. Everything is on disk
    /// before the name is, so whatever happens meanwhile the name leads to a whole image. Blocks.
    ///
    /// # Errors
    /// If the source cannot be read, the store cannot be written or `name` is no valid name.
    pub fn import(&self, from: &Source, name: Option<&str>, progress: &Progress) -> Result<Image> {
        self.import_again(from, name, Rehash::Changed, progress)
    }

    /// Like [`Store::import`], with a say in what is read again of a source that was imported before.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn import_again(
        &self,
        from: &Source,
        name: Option<&str>,
        rehash: Rehash,
        progress: &Progress,
    ) -> Result<Image> {
        let name = name.map_or_else(|| Ok(from.default_name()), str::parse)?;
        self.ensure_changeable()?;
        // Until the image has a name, garbage collection would take it.
        let _lock = self.lock()?;
        self.files.sweep();
        let imported = composefs::import(ImportRequest { store: self, from, rehash, progress }, &name)?;
        let id = imported.id;
        let hex = id.to_hex();
        self.index(&id)?;
        if let Some(config) = &imported.config {
            self.files.write_durably(&format!("config/{hex}"), config)?;
        }
        self.set_name(&name, &id, imported.config.as_deref(), Some(from.absolute().to_string()))?;
        self.open_image(id, Some(name.to_string()))
    }
}
