//! Committing: an image made of another and what a guest changed.

use std::io::Read;

use anyhow::{Context, Result, ensure};

use super::composefs;
use crate::store::image::handle::Image;
use crate::store::name::ImageName;
use crate::store::repository::store::Store;

impl Store {
    /// Makes an image of `base` and the upper layer of a guest of it, a stream of
    /// [`pack_layer`](lazyroot_archive::pack_layer), and names it. Only objects that are not there yet are written. As an
    /// import it is whole on the disk before it has its name.
    ///
    /// # Errors
    /// If `base` is in an upstream only, `layer` is damaged or stops before its end, `name` is no valid name, or the store
    /// cannot be written.
    pub fn commit(&self, base: &Image, layer: impl Read, name: &str) -> Result<Image> {
        let name: ImageName = name.parse()?;
        self.ensure_can_commit(base)?;
        let config = self.config_document(&base.id, base.name.as_deref());
        // Until the image has a name, garbage collection would take it.
        let _lock = self.lock()?;
        let id = composefs::commit(self, &base.id, layer).with_context(|| format!("cannot make the image {name}"))?;
        self.index(&id)?;
        if let Some(config) = &config {
            self.files.write_durably(&format!("config/{}", id.to_hex()), config)?;
        }
        self.set_name(&name, &id, config.as_deref(), None)?;
        self.open_image(id, Some(name.to_string()))
    }

    /// # Errors
    /// If no image can be made of this one here.
    pub fn ensure_can_commit(&self, base: &Image) -> Result<()> {
        ensure!(
            cfg!(target_os = "linux"),
            "an image can be written on Linux only, for example in the podman machine: copy the changes out with 'lazyroot cp'"
        );
        self.ensure_changeable()?;
        let here = self.manifest(&base.id).exists();
        ensure!(here, "image {} is at an upstream and not in the store: import it first", base.id);
        Ok(())
    }
}
