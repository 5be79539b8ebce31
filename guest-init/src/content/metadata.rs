//! The image's metadata, the EROFS manifest and the object index: fetched, and refused unless they match their digests.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result, anyhow};
use lazyroot_proto::verified::Mismatch;
use lazyroot_proto::verity::LeafHasher;
use lazyroot_proto::{ObjectId, ObjectIndex};
use rustix::fs::MemfdFlags;

use crate::link::Link;

/// A verified manifest, in a memfd that nobody else has.
pub struct Manifest(File);

/// A manifest on its way.
struct Writer {
    file: File,
    hasher: LeafHasher,
}

impl Manifest {
    /// Fetches the manifest with this digest.
    ///
    /// # Errors
    /// If the host does not deliver it, or delivers another one.
    pub fn fetch(link: &Link, digest: ObjectId) -> Result<Self> {
        let mut writer = Writer::new(digest)?;
        link.manifest(|chunk| writer.write(chunk)).context("cannot fetch the image's manifest")?;
        writer.verify(digest)
    }

    /// The manifest of these bytes.
    #[cfg(test)]
    pub fn of(bytes: &[u8]) -> Self {
        let digest = lazyroot_proto::verity::digest(lazyroot_proto::Algorithm::Sha256, bytes);
        let mut writer = Writer::new(digest).unwrap();
        writer.write(bytes).unwrap();
        writer.verify(digest).unwrap()
    }

    /// The file.
    pub fn into_file(self) -> File {
        self.0
    }
}

impl Writer {
    fn new(digest: ObjectId) -> Result<Self> {
        let file = File::from(rustix::fs::memfd_create("manifest", MemfdFlags::CLOEXEC)?);
        Ok(Self { file, hasher: LeafHasher::new(digest.algorithm()) })
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.hasher.update(chunk);
        self.file.write_all(chunk).context("cannot keep it in memory")
    }

    fn verify(self, digest: ObjectId) -> Result<Manifest> {
        self.hasher.verify(&digest).map_err(|mismatch| refuse("manifest", digest, mismatch))?;
        Ok(Manifest(self.file))
    }
}

/// Fetches the object index with this digest.
///
/// # Errors
/// If the host does not deliver it, or delivers another one.
pub fn fetch_index(link: &Link, digest: ObjectId) -> Result<ObjectIndex> {
    let index = link.index().context("cannot fetch the image's object index")?;
    let index = index.verify_object(&digest).map_err(|mismatch| refuse("object index", digest, mismatch))?;
    Ok(ObjectIndex::from_bytes(&index)?)
}

fn refuse(what: &str, digest: ObjectId, mismatch: Mismatch) -> anyhow::Error {
    let found = mismatch.found.map(|found| found.to_string()).unwrap_or_default();
    anyhow!("the {what} does not match its digest: expected {digest}, got {found}; the image is refused")
}
