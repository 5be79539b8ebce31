//! The images of a repository, opened and listed.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;

use super::store::Store;
use crate::store::image::config::ImageConfig;
use crate::store::image::handle::{Image, ImageSummary};
use crate::store::image::index::ImageIndex;
use crate::store::image::tree::Tree;

impl Store {
    /// Every image, those with names first, by name.
    ///
    /// # Errors
    /// If the repository cannot be read. An image that is damaged is listed with what is known of it.
    pub fn images(&self) -> Result<Vec<ImageSummary>> {
        let mut images: BTreeMap<ObjectId, Vec<String>> = self.ids()?.into_iter().map(|id| (id, vec![])).collect();
        for (name, id) in self.names()? {
            images.entry(id).or_default().push(name);
        }
        let mut summaries = Vec::new();
        for (id, names) in images {
            let index = self.index(&id).inspect_err(|error| tracing::warn!("{error:#}")).ok();
            summaries.push(ImageSummary {
                id,
                manifest_bytes: fs::metadata(self.manifest(&id)).map_or(0, |meta| meta.len()),
                objects: index.as_ref().map_or(0, |index| index.objects()),
                object_bytes: index.as_ref().map_or(0, |index| index.total_bytes()),
                architecture: self.config(&id, names.first().map(String::as_str)).map(|config| config.architecture),
                names,
            });
        }
        summaries.sort_by(|a, b| (a.names.is_empty(), &a.names, a.id).cmp(&(b.names.is_empty(), &b.names, b.id)));
        Ok(summaries)
    }

    pub(in crate::store) fn open_image(&self, id: ObjectId, name: Option<String>) -> Result<Image> {
        let index = Arc::new(self.index(&id)?);
        let config = self.config(&id, name.as_deref());
        Ok(Image { id, manifest: self.manifest(&id), index, config, name })
    }

    /// The files of an image, read from its manifest. Of an image that cannot be served, because its tree cannot be
    /// walked, too.
    ///
    /// # Errors
    /// If the manifest cannot be read or does not match the id.
    pub fn tree(&self, id: &ObjectId) -> Result<Tree> {
        let path = self.manifest(id);
        let manifest = fs::read(&path).with_context(|| format!("cannot read the manifest {}", path.display()))?;
        Tree::new(id, manifest)
    }

    /// What is known of an image's objects: what was remembered, or computed now.
    ///
    /// # Errors
    /// If it must be computed, and the manifest is damaged or cannot be read.
    pub fn index(&self, id: &ObjectId) -> Result<ImageIndex> {
        ImageIndex::open(&self.files, *id, self.manifest(id))
    }

    fn config(&self, id: &ObjectId, name: Option<&str>) -> Option<ImageConfig> {
        let document = self.config_document(id, name)?;
        ImageConfig::from_oci(&document)
            .inspect_err(|error| tracing::warn!("the configuration of image {id} is damaged: {error}"))
            .ok()
    }
}
