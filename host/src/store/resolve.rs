//! What a user's words stand for: an image here, one that an upstream has, or a source that is imported.

use anyhow::Result;
use lazyroot_proto::ObjectId;

use super::image::handle::Image;
use super::image::tree::Tree;
use super::name::ImageName;
use super::progress::Progress;
use super::repository::store::Store;
use super::write::source::Source;

impl Store {
    /// Finds an image by `name[:tag]`, by digest, or by the first 12 or more hex digits of one, here and then
    /// at the upstreams. A source of images (`containers-storage:NAME`) is imported.
    ///
    /// # Errors
    /// If there is no such image (the message lists what there is), several start with the digits, the manifest is
    /// damaged, or it is nowhere found and an upstream could not be asked.
    pub fn resolve(&self, text: &str) -> Result<Image> {
        self.find(text)?.ok_or_else(|| self.unknown(text))
    }

    /// As [`Store::resolve`]; `None` if there is no such image.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn find(&self, text: &str) -> Result<Option<Image>> {
        if let Ok(source) = text.parse::<Source>() {
            return self.find_source(text, &source);
        }
        if let Some((name, id)) = self.find_name(text)? {
            return self.open_image(id, Some(name)).map(Some);
        }
        if let Some(id) = self.find_digest(text)? {
            return self.open_image(id, None).map(Some);
        }
        self.find_remote(text, false)
    }

    /// An image's id and files, here and then at the upstreams. Nothing is imported, and of an image that is here nothing but
    /// its manifest is read.
    ///
    /// # Errors
    /// If there is no such image, its manifest is damaged, or it is not here and an upstream could not be asked.
    pub fn look_into(&self, text: &str) -> Result<(ObjectId, Tree)> {
        let here = match self.find_name(text)? {
            Some((_, id)) => Some(id),
            None => self.find_digest(text)?,
        };
        if let Some(id) = here {
            return Ok((id, self.tree(&id)?));
        }
        let image = self.find_remote(text, false)?.ok_or_else(|| self.unknown(text))?;
        Ok((image.id, image.tree()?))
    }

    /// Gives an image one more name; a name that another image has moves over.
    ///
    /// # Errors
    /// If there is no such image, `name` is no valid name, or the repository cannot be written.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        let name: ImageName = name.parse()?;
        self.ensure_changeable()?;
        let image = self.resolve(image)?;
        let config = self.config_document(&image.id, image.name.as_deref());
        let source = image.name.as_deref().and_then(|name| self.source_of(&image.id, name));
        self.set_name(&name, &image.id, config.as_deref(), source)
    }

    /// An image of an upstream, which may know better than we do what a boot of it reads.
    fn find_remote(&self, text: &str, is_source: bool) -> Result<Option<Image>> {
        let Some(remote) = self.remote_images() else { return Ok(None) };
        let image = remote.find(text, is_source)?;
        if let Some(image) = &image
            && let own = self.profile(&image.id)
            && own.read().is_none()
            && let Some(profile) = remote.profile(&image.id)
            && let Err(error) = own.write(&profile)
        {
            tracing::debug!("the boot profile of {} is not used: {error:#}", image.id);
        }
        Ok(image)
    }

    /// Imports an image, here or where podman's images are. Podman's own images are taken from an upstream if one
    /// imports, and so is everything where nothing can be imported.
    fn find_source(&self, text: &str, source: &Source) -> Result<Option<Image>> {
        let there = matches!(source, Source::ContainersStorage { .. }) || !cfg!(target_os = "linux");
        match self.remote_images() {
            Some(remote) if there && remote.imports() => self.find_remote(text, true),
            _ => self.import(source, None, &Progress::stderr()).map(Some),
        }
    }
}
