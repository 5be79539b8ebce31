//! Images that the local store does not have: asked of upstreams, checked, and kept.
//!
//! ```text
//! <hex>             a manifest
//! <hex>.index       its object index, computed from it
//! <hex>.config      the OCI configuration it came with last
//! <hex>.profile     what boots read, as the upstream knew it
//! names/<hex>       what a reference stood for when it was last asked of the upstreams
//! tmp/
//! ```

use std::fs::{self, File, FileTimes};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{Algorithm, ObjectId, Unverified, Verified, verity};
use serde::{Deserialize, Serialize};

use super::config::ImageConfig;
use super::handle::Image;
use super::index::ImageIndex;
use super::tree::Tree;
use crate::home::Home;
use crate::store::files::Files;
use crate::store::objects::cache::{CacheSize, CacheUse, CachedUpstreams};
use crate::store::objects::upstream::Discovery;
use crate::store::objects::upstream::{self, RemoteImage, Spec, Traffic, Upstreams};
use crate::store::reads::boot_profile::Profile;

/// Manifests kept, of the images that were used last: a few MiB each.
const KEPT: usize = 64;

/// Upstreams, the cache of their objects, and the images that came from them.
pub struct RemoteImages {
    /// Objects of these images, from the cache or an upstream.
    pub(in crate::store) objects: Arc<CachedUpstreams>,
    files: Files,
}

/// What a reference stood for.
#[derive(Serialize, Deserialize)]
struct ReferenceRecord {
    image: String,
    name: Option<String>,
    config: Option<serde_json::Value>,
}

impl RemoteImages {
    /// The upstreams that `specs` describe, and the cache in `home`.
    ///
    /// # Errors
    /// If a description makes no sense or the cache cannot be used.
    pub fn open(home: &Home, specs: &[Spec], cache_size: CacheSize) -> Result<Self> {
        let upstreams = specs.iter().map(upstream::open).collect::<Result<_>>()?;
        let folder = home.data_dir("cache/objects")?;
        let limit = cache_size.bytes(&folder)?;
        let objects = Arc::new(CachedUpstreams::open(Upstreams::new(upstreams), &folder, limit)?);
        Ok(Self { objects, files: Files::in_folder(home.data_dir("cache/images")?) })
    }

    /// Bytes in the cache in `home`, and how often it had what was wanted; `None` if there is none.
    pub fn cache_usage(home: &Home) -> Option<(u64, CacheUse)> {
        let objects = home.data().join("cache/objects");
        objects.exists().then(|| CachedUpstreams::usage(&objects))
    }

    /// What came from the upstreams so far.
    pub fn traffic(&self) -> Traffic {
        self.objects.upstreams().traffic()
    }

    /// The upstreams' names, for messages.
    pub(in crate::store) fn upstream_names(&self) -> String {
        self.objects.upstreams().names().collect::<Vec<_>>().join(", ")
    }

    /// Whether an upstream imports images from sources.
    pub(in crate::store) fn imports(&self) -> bool {
        self.objects.upstreams().import()
    }

    /// The image that a reference stands for: a name, a digest, or (`is_source`) a source to import it from. A name is
    /// asked for anew each time, for it may have moved; if no upstream can be asked, what it stood for last is used.
    ///
    /// # Errors
    /// If no upstream has it and one could not be asked, or the image cannot be kept.
    pub(in crate::store) fn find(&self, reference: &str, is_source: bool) -> Result<Option<Image>> {
        if let Some(id) = digest(reference)
            && let Some(manifest) = self.manifest(&id)
        {
            let config = self.files.read(&format!("{}.config", id.to_hex())).ok();
            return self.image(id, manifest, None, config.as_deref()).map(Some);
        }
        let record = format!("names/{}", verity::digest(Algorithm::Sha256, reference.as_bytes()).to_hex());
        let found = self.objects.upstreams().find(reference, is_source, |found| self.manifest(&found.id));
        match found {
            Ok(None) => Ok(None),
            Ok(Some(Discovery { found, manifest, profile, upstream })) => {
                tracing::info!("{reference} is {} at {upstream}", found.id);
                if let Some(profile) = profile {
                    self.files.write(&format!("{}.profile", found.id.to_hex()), &profile)?;
                }
                self.keep(&record, &found, &manifest).context("cannot keep the image's metadata")?;
                self.image(found.id, manifest, found.name, found.config.as_deref()).map(Some)
            }
            Err(error) => match self.last_known(&record) {
                Some(image) => {
                    tracing::warn!("{error:#}; using what {reference} was last: {}", image.id);
                    Ok(Some(image))
                }
                None => Err(error),
            },
        }
    }

    /// What boots of an image read, as an upstream knew it.
    pub(in crate::store) fn profile(&self, id: &ObjectId) -> Option<Profile> {
        let bytes = self.files.read(&format!("{}.profile", id.to_hex())).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn last_known(&self, record: &str) -> Option<Image> {
        let record: ReferenceRecord = serde_json::from_slice(&self.files.read(record).ok()?).ok()?;
        let id = digest(&record.image)?;
        let config = record.config.map(|config| config.to_string().into_bytes());
        self.image(id, self.manifest(&id)?, record.name, config.as_deref()).ok()
    }

    /// A manifest that was kept; `None` if it was not, or is damaged.
    fn manifest(&self, id: &ObjectId) -> Option<Verified> {
        let name = id.to_hex();
        let Ok(manifest) = Unverified::from(self.files.read(&name).ok()?).verify_object(id) else {
            tracing::warn!("the kept manifest of image {id} is damaged: it is fetched again");
            return None;
        };
        if let Ok(file) = File::open(self.files.path(&name)) {
            let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
        }
        Some(manifest)
    }

    fn keep(&self, record: &str, found: &RemoteImage, manifest: &Verified) -> Result<()> {
        self.files.sweep();
        let hex = found.id.to_hex();
        if !self.files.path(&hex).exists() || self.manifest(&found.id).is_none() {
            self.files.write(&hex, manifest)?;
            self.forget_old();
        }
        let config = found.config.as_deref().and_then(|config| serde_json::from_slice(config).ok());
        if let Some(config) = &found.config {
            self.files.write(&format!("{hex}.config"), config)?;
        }
        let reference = ReferenceRecord { image: found.id.to_string(), name: found.name.clone(), config };
        self.files.write(record, &serde_json::to_vec(&reference)?)?;
        Ok(())
    }

    /// Removes the metadata of images that were not used for longest.
    fn forget_old(&self) {
        let mut manifests: Vec<_> = fs::read_dir(self.files.path(""))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().extension().is_none() && entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.file_name().into_string().ok()?)))
            .collect();
        manifests.sort();
        let old = manifests.len().saturating_sub(KEPT);
        for (_, hex) in &manifests[..old] {
            for name in ["", ".index", ".config", ".profile"].map(|kind| format!("{hex}{kind}")) {
                let _ = self.files.remove(&name);
            }
        }
    }

    fn image(&self, id: ObjectId, manifest: Verified, name: Option<String>, config: Option<&[u8]>) -> Result<Image> {
        let (hex, index_name) = (id.to_hex(), format!("{}.index", id.to_hex()));
        let known = self.files.read(&index_name).ok().and_then(|bytes| ObjectIndex::from_bytes(&bytes).ok());
        let index = match known.filter(|index| index.algorithm() == id.algorithm()) {
            Some(index) => index,
            // Computed, not fetched: so it is as trustworthy as the manifest.
            None => {
                let index =
                    Tree::of_verified(&id, manifest)?.objects().context("the upstream's manifest is unusable")?;
                self.files.write(&index_name, &index.to_bytes())?;
                index
            }
        };
        let config = config.and_then(|config| {
            let parsed = ImageConfig::from_oci(config);
            parsed.inspect_err(|error| tracing::warn!("the configuration of image {id} is unusable: {error}")).ok()
        });
        Ok(Image { id, name, manifest: self.files.path(&hex), index: Arc::new(ImageIndex::in_memory(&index)), config })
    }
}

/// A whole digest, with or without its algorithm's name.
fn digest(text: &str) -> Option<ObjectId> {
    let id: ObjectId = text.parse().ok()?;
    (text == id.to_string() || text == id.to_hex()).then_some(id)
}
