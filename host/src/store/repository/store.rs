//! `Store`: an opened repository, and what is remembered of it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::{Algorithm, ObjectId};
use rustix::fs::FlockOperation;
use serde::Deserialize;

use crate::store::files::Files;
use crate::store::image::remote_images::RemoteImages;
use crate::store::objects::chain::Chain;
use crate::store::objects::local::LocalObjects;
use crate::store::objects::source::ObjectSource;
use crate::store::reads::boot_profile::ProfileFile;
use crate::store::reads::trace::TraceFile;

/// An opened store.
pub struct Store {
    path: PathBuf,
    algorithm: Algorithm,
    pub(in crate::store) files: Files,
    pub(in crate::store) objects: Arc<LocalObjects>,
    remote_images: Option<Arc<RemoteImages>>,
    /// Features of the repository that only a newer lazyroot may write with.
    unknown_features: Vec<String>,
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

/// The file that says what kind of repository this is.
pub(in crate::store) const META: &str = "meta.json";

impl Store {
    /// Opens the repository at `path`, which is absolute and must be there.
    pub(in crate::store) fn open_existing(path: PathBuf) -> Result<Self> {
        let meta_path = path.join(META);
        let meta = match fs::read(&meta_path) {
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
        let objects = Arc::new(LocalObjects::open(&path)?);
        let files = Files::new(&path);
        let unknown_features = meta.features.read_only_compatible.into_iter().filter(|name| name != V1_EROFS).collect();
        Ok(Self { path, algorithm, files, objects, unknown_features, remote_images: None })
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
    pub fn with_remote_images(self, remote_images: RemoteImages) -> Self {
        Self { remote_images: Some(Arc::new(remote_images)), ..self }
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
    pub fn remote_images(&self) -> Option<&Arc<RemoteImages>> {
        self.remote_images.as_ref()
    }

    /// Where its objects are read: here, and then at the upstreams.
    pub fn source(&self) -> Arc<dyn ObjectSource> {
        match &self.remote_images {
            Some(remote) => Arc::new(Chain { local: self.objects.clone(), remote: remote.objects.clone() }),
            None => self.objects.clone(),
        }
    }

    pub(in crate::store) fn manifest(&self, id: &ObjectId) -> PathBuf {
        self.path.join("images").join(id.to_hex())
    }

    /// Where files are on their way to somewhere else in the repository.
    pub(in crate::store) fn temporary_dir(&self) -> Result<PathBuf> {
        let dir = self.files.path("tmp");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Fails if the repository may only be read by this version.
    pub(in crate::store) fn ensure_changeable(&self) -> Result<()> {
        ensure!(
            self.unknown_features.is_empty(),
            "the store {} can be read but not changed by this lazyroot: it has the features {:?}; update lazyroot",
            self.path.display(),
            self.unknown_features
        );
        Ok(())
    }

    /// Keeps composefs' garbage collection out while names change.
    pub(in crate::store) fn lock(&self) -> Result<File> {
        let lock = File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        rustix::fs::flock(&lock, FlockOperation::LockShared).context("cannot lock the store")?;
        Ok(lock)
    }

    /// The ids of the files in `objects`.
    pub(in crate::store) fn object_ids(&self) -> Result<Vec<ObjectId>> {
        let mut present = Vec::new();
        for byte in 0..=u8::MAX {
            let dir = self.path().join(format!("objects/{byte:02x}"));
            let Ok(entries) = fs::read_dir(dir) else { continue };
            for entry in entries {
                let name = entry?.file_name();
                let id = ObjectId::from_object_path(byte, name.as_encoded_bytes());
                present.extend(id.filter(|id| id.algorithm() == self.algorithm()));
            }
        }
        Ok(present)
    }
}
