//! The store: a composefs repository, and lazyroot's files beside it.
//!
//! Everything here but creating and importing works on the repository's documented layout (`meta.json`,
//! `images/HEX`, `images/refs/NAME`), not through the composefs crates, and takes composefs' shared lock only while it
//! writes: a store that serves for days must not keep `gc` waiting.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::{Algorithm, ObjectId};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::files::{Files, remove_if_there};
use super::image::config::ImageConfig;
use super::image::handle::{Image, ImageSummary};
use super::image::index::{self, ImageIndex};
use super::image::remote_images::Elsewhere;
use super::image::tree::Tree;
use super::name::ImageName;
use super::objects::chain::Chain;
use super::objects::local::RepositorySource;
use super::objects::source::ObjectSource;
use super::objects::upstream::Address as UpstreamAddress;
use super::progress::Progress;
use super::reads::boot_profile::ProfileFile;
use super::reads::trace::TraceFile;
use super::write::composefs;
use super::write::push::{Pushed, push};
use super::write::source::{Import, Source};
use crate::home::Home;

/// A digest may be cut to this many hex digits: 48 bits, as podman and git print them.
const SHORTEST_PREFIX: usize = 12;

/// An opened store.
pub struct Store {
    path: PathBuf,
    algorithm: Algorithm,
    pub(super) files: Files,
    pub(super) source: Arc<RepositorySource>,
    elsewhere: Option<Arc<Elsewhere>>,
    /// Features of the repository that only a newer lazyroot may write with.
    unknown_features: Vec<String>,
}

/// What became of an image that was removed by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The image has other names and stays.
    Untagged {
        /// Those names.
        remaining: Vec<String>,
    },
    /// The image is gone; its objects stay until garbage collection.
    Image,
}

/// What `meta.json` says, as far as a reader needs it.
#[derive(Deserialize)]
struct Meta {
    version: u32,
    algorithm: String,
    #[serde(default)]
    features: Features,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Features {
    #[serde(default)]
    incompatible: Vec<String>,
    #[serde(default)]
    read_only_compatible: Vec<String>,
}

/// The one feature that a writer must know and we know (composefs' `known_features::RO_COMPAT`): manifests are of the
/// C tools' version.
const V1_EROFS: &str = "v1_erofs";

/// What a name adds to its image: two images may differ in nothing but their configuration, and then share
/// the manifest.
#[derive(Serialize, Deserialize)]
struct NameRecord {
    /// The image that the record belongs to; another tool may have moved the name.
    image: String,
    /// The OCI configuration.
    config: Option<serde_json::Value>,
    /// Where the image was imported from, for a repair.
    #[serde(default)]
    source: Option<String>,
}

/// What of a source that was imported before is read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rehash {
    /// Files and objects that changed since, as far as their times tell.
    #[default]
    Changed,
    /// Everything.
    All,
}

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
        let meta_path = path.join("meta.json");
        let meta = match fs::read(&meta_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_vacant(&path)? => {
                composefs::create(&path).with_context(|| format!("cannot make a store at {}", path.display()))?;
                fs::read(&meta_path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "{} is no store: it is not empty and has no meta.json; give --store a composefs repository \
                     or a new folder",
                    path.display()
                )
            }
            meta => meta,
        };
        let meta = meta.with_context(|| format!("cannot read {}", meta_path.display()))?;
        let meta: Meta =
            serde_json::from_slice(&meta).with_context(|| format!("{} is damaged", meta_path.display()))?;
        if meta.version != 1 || !meta.features.incompatible.is_empty() {
            bail!(
                "the store {} was made by a newer composefs (version {}, features {:?}): update lazyroot",
                path.display(),
                meta.version,
                meta.features.incompatible
            );
        }
        // The number is log2 of the Merkle tree's block size; composefs knows no other, neither do guests.
        let algorithm = match meta.algorithm.as_str() {
            "fsverity-sha256-12" => Algorithm::Sha256,
            "fsverity-sha512-12" => Algorithm::Sha512,
            other => bail!("the store {} uses '{other}', which lazyroot does not know", path.display()),
        };
        // composefs makes the folder with the first object.
        if let Err(error) = fs::create_dir(path.join("objects"))
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {}", path.join("objects").display()));
        }
        let source = Arc::new(RepositorySource::open(&path)?);
        let files = Files::new(&path);
        let unknown_features = meta.features.read_only_compatible.into_iter().filter(|name| name != V1_EROFS).collect();
        Ok(Self { path, algorithm, files, source, unknown_features, elsewhere: None })
    }

    /// The hash of every id in it.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The repository's folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store, with upstreams for the images and objects that it does not have.
    pub fn with_elsewhere(self, elsewhere: Elsewhere) -> Self {
        Self { elsewhere: Some(Arc::new(elsewhere)), ..self }
    }

    /// Where what VMs read of an image at boot is remembered.
    pub fn profile(&self, image: &ObjectId) -> ProfileFile {
        ProfileFile::new(self.files.clone(), image)
    }

    /// Where what the last run read of an image is kept.
    pub fn trace(&self, image: &ObjectId) -> TraceFile {
        TraceFile::new(self.files.clone(), image)
    }

    /// Its upstreams, if it has any.
    pub fn elsewhere(&self) -> Option<&Arc<Elsewhere>> {
        self.elsewhere.as_ref()
    }

    /// Where its objects are read: here, and then elsewhere.
    pub fn source(&self) -> Arc<dyn ObjectSource> {
        match &self.elsewhere {
            Some(elsewhere) => Arc::new(Chain { local: self.source.clone(), elsewhere: elsewhere.cached.clone() }),
            None => self.source.clone(),
        }
    }

    /// Finds an image by `name[:tag]`, by digest, or by the first 12 or more hex digits of one, here and then
    /// elsewhere. A source of images (`containers-storage:NAME`) is imported.
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
        self.find_elsewhere(text, false)
    }

    /// An image of an upstream, which may know better than we do what a boot of it reads.
    fn find_elsewhere(&self, text: &str, is_source: bool) -> Result<Option<Image>> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(None) };
        let image = elsewhere.find(text, is_source)?;
        if let Some(image) = &image
            && let own = self.profile(&image.id)
            && own.read().is_none()
            && let Some(profile) = elsewhere.profile(&image.id)
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
        match &self.elsewhere {
            Some(elsewhere) if there && elsewhere.imports() => self.find_elsewhere(text, true),
            _ => self.import(source, None, &Progress::stderr()).map(Some),
        }
    }

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

    /// The names of an image, sorted.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn names_of(&self, id: &ObjectId) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|(_, named)| named == id).map(|(name, _)| name).collect())
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

    /// Takes a name away, and with the last one the image; a digest takes all of the image's names. Objects stay
    /// until garbage collection, for other images may have them too.
    ///
    /// # Errors
    /// If there is no such image, it is in use and would lose its last name, or the repository cannot be written.
    pub fn remove(&self, text: &str) -> Result<Removed> {
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
            return Ok(Removed::Image);
        }
        Ok(Removed::Untagged { remaining })
    }

    /// Sends an image to a bucket, under the name it was found by; what is there already is not sent.
    ///
    /// # Errors
    /// If `to` is no bucket or cannot be written, or an object cannot be read.
    pub fn push(&self, to: &UpstreamAddress, image: &Image, progress: &Progress) -> Result<Pushed> {
        let name = image.name.as_deref().and_then(|name| name.parse().ok());
        let profile = self.profile(&image.id).read().and_then(|profile| serde_json::to_vec(&profile).ok());
        push(
            to,
            image,
            name.as_ref(),
            profile,
            self.source(),
            progress.bytes(
                format!("pushing {}", image.name.as_deref().unwrap_or("the image")),
                Some(image.index.total_bytes()),
            ),
        )
    }

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
        let imported = Import { store: self, from, rehash, progress }.run(&name)?;
        let id = imported.id;
        let hex = id.to_hex();
        self.index(&id)?;
        if let Some(config) = &imported.config {
            self.files.write_durably(&format!("config/{hex}"), config)?;
        }
        self.set_name(&name, &id, imported.config.as_deref(), Some(from.absolute().to_string()))?;
        self.open_image(id, Some(name.to_string()))
    }

    pub(super) fn open_image(&self, id: ObjectId, name: Option<String>) -> Result<Image> {
        let index = Arc::new(self.index(&id)?);
        let config = self.config(&id, name.as_deref());
        Ok(Image { id, manifest: self.manifest(&id), index, config, name })
    }

    /// What is known of the image's objects.
    pub(super) fn index(&self, id: &ObjectId) -> Result<ImageIndex> {
        ImageIndex::open(&self.files, *id, self.manifest(id))
    }

    fn config(&self, id: &ObjectId, name: Option<&str>) -> Option<ImageConfig> {
        let document = self.config_document(id, name)?;
        ImageConfig::from_oci(&document)
            .inspect_err(|error| tracing::warn!("the configuration of image {id} is damaged: {error}"))
            .ok()
    }

    /// The OCI configuration that came with the image under this name, or with its last import.
    pub fn config_document(&self, id: &ObjectId, name: Option<&str>) -> Option<Vec<u8>> {
        if let Some(name) = name
            && let Some(record) = self.name_record(id, name)
        {
            return record.config.map(|config| config.to_string().into_bytes());
        }
        self.files.read(&format!("config/{}", id.to_hex())).ok()
    }

    /// Where the image with this name was imported from, if that is known.
    pub(super) fn source_of(&self, id: &ObjectId, name: &str) -> Option<String> {
        self.name_record(id, name)?.source
    }

    fn name_record(&self, id: &ObjectId, name: &str) -> Option<NameRecord> {
        let record = self.files.read(&format!("refs/{name}")).ok()?;
        serde_json::from_slice(&record).ok().filter(|record: &NameRecord| record.image == id.to_hex())
    }

    pub(super) fn set_name(
        &self,
        name: &ImageName,
        id: &ObjectId,
        config: Option<&[u8]>,
        source: Option<String>,
    ) -> Result<()> {
        let _lock = self.lock()?;
        let config = config.map(serde_json::from_slice).transpose().context("the image's configuration is no JSON")?;
        let record = NameRecord { image: id.to_hex(), config, source };
        let path = self.name_path(name.as_str());
        let written = (|| {
            self.files.write_durably(&format!("refs/{name}"), &serde_json::to_vec(&record)?)?;
            fs::create_dir_all(path.parent().expect("a name is below images/refs"))?;
            let up = "../".repeat(name.as_str().split('/').count());
            self.files.replace_symlink(&format!("{up}{}", id.to_hex()), &path)?;
            anyhow::Ok(())
        })();
        written.with_context(|| format!("cannot name the image {name} in {}", self.path.display()))
    }

    /// The image's id by name or digest, as [`Store::resolve`] finds it. Nothing of the image is read.
    ///
    /// # Errors
    /// If there is no such image.
    pub fn find_id(&self, text: &str) -> Result<ObjectId> {
        if let Some((_, id)) = self.find_name(text)? {
            return Ok(id);
        }
        self.find_digest(text)?.ok_or_else(|| self.unknown(text))
    }

    /// An image's id and files, here and then elsewhere. Nothing is imported, and of an image that is here nothing but
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
        let image = self.find_elsewhere(text, false)?.ok_or_else(|| self.unknown(text))?;
        Ok((image.id, image.tree()?))
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

    /// Where files are on their way to somewhere else in the repository.
    pub(super) fn temporary_dir(&self) -> Result<PathBuf> {
        let dir = self.files.path("tmp");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// The image that a name stands for, with the name as it is stored. Names that other tools gave need no tag.
    fn find_name(&self, text: &str) -> Result<Option<(String, ObjectId)>> {
        let Ok(name) = text.parse::<ImageName>() else { return Ok(None) };
        for name in [name.as_str(), text] {
            match fs::read_link(self.name_path(name)) {
                Ok(target) => {
                    let id = self.link_target(&target);
                    let id = id.with_context(|| format!("the name {name} leads to no image: import it again"))?;
                    return Ok(Some((name.to_owned(), id)));
                }
                // InvalidInput: a folder, so a part of longer names.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory
                    ) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot look up the name {name}")),
            }
        }
        Ok(None)
    }

    fn find_digest(&self, text: &str) -> Result<Option<ObjectId>> {
        let digits = text.strip_prefix(self.algorithm.name()).and_then(|rest| rest.strip_prefix(':')).unwrap_or(text);
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || digits.len() < SHORTEST_PREFIX {
            return Ok(None);
        }
        let mut found = self.ids()?.into_iter().filter(|id| id.to_hex().starts_with(digits));
        let first = found.next();
        ensure!(found.next().is_none(), "several images start with {digits}: give more digits");
        Ok(first)
    }

    /// The ids of all images.
    pub(super) fn ids(&self) -> Result<Vec<ObjectId>> {
        let dir = self.path.join("images");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            if let Some(id) = name.to_str().and_then(|name| self.parse_hex(name)) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Every name and its image, sorted by name.
    pub(super) fn names(&self) -> Result<Vec<(String, ObjectId)>> {
        let mut names = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(prefix) = todo.pop() {
            let dir = self.name_path(&prefix);
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
            };
            for entry in entries {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                if entry.file_type()?.is_dir() {
                    todo.push(name);
                } else if let Ok(target) = fs::read_link(entry.path())
                    && let Some(id) = self.link_target(&target)
                {
                    names.push((name, id));
                }
            }
        }
        names.sort();
        Ok(names)
    }

    fn unknown(&self, text: &str) -> anyhow::Error {
        let names: Vec<String> = self.names().unwrap_or_default().into_iter().map(|(name, _)| name).collect();
        let there = match names.len() {
            0 => "there are no images yet".to_owned(),
            1..=10 => format!("there are: {}", names.join(", ")),
            more => format!("there are {more}, see 'lazyroot image ls'"),
        };
        let elsewhere = self.elsewhere.as_ref().map(|elsewhere| format!(" and not at {} either", elsewhere.names()));
        let elsewhere = elsewhere.unwrap_or_default();
        anyhow::anyhow!(
            "no image '{text}' in {}{elsewhere}; {there}. 'lazyroot image import SOURCE --name {text}' brings one in, from \
             containers-storage:NAME, docker://REF, oci:PATH or dir:PATH",
            self.path.display()
        )
    }

    /// The image that a symbolic link in `images/refs` points to.
    fn link_target(&self, target: &Path) -> Option<ObjectId> {
        self.parse_hex(target.file_name()?.to_str()?)
    }

    fn parse_hex(&self, hex: &str) -> Option<ObjectId> {
        hex.parse().ok().filter(|id: &ObjectId| id.algorithm() == self.algorithm && id.to_hex() == hex)
    }

    pub(super) fn manifest(&self, id: &ObjectId) -> PathBuf {
        self.path.join("images").join(id.to_hex())
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.path.join("images/refs").join(name)
    }

    /// Fails if the repository may only be read by this version.
    pub(super) fn ensure_changeable(&self) -> Result<()> {
        ensure!(
            self.unknown_features.is_empty(),
            "the store {} can be read but not changed by this lazyroot: it has the features {:?}; update lazyroot",
            self.path.display(),
            self.unknown_features
        );
        Ok(())
    }

    /// Keeps composefs' garbage collection out while names change.
    pub(super) fn lock(&self) -> Result<File> {
        let lock = File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        rustix::fs::flock(&lock, FlockOperation::LockShared).context("cannot lock the store")?;
        Ok(lock)
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
