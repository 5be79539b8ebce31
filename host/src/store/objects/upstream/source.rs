//! What an upstream is to the others here.

use anyhow::Result;
use lazyroot_proto::{ObjectId, Unverified};

use crate::store::objects::source::{Object, ObjectError};

/// An image as an upstream describes it.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    /// The manifest's digest.
    pub id: ObjectId,
    /// The manifest's size in bytes.
    pub manifest_size: u64,
    /// Its name there, if it was found by one.
    pub name: Option<String>,
    /// Its OCI configuration, JSON.
    pub config: Option<Vec<u8>>,
}

/// Somewhere else that has images and their objects, which nobody has checked. Calls may block.
pub trait Upstream: Send + Sync {
    /// As the user wrote it.
    fn name(&self) -> &str;

    /// Whether it takes sources of images (`containers-storage:NAME`) as references, and imports from them.
    fn imports(&self) -> bool;

    /// Whether it can be asked, and is what we take it for.
    ///
    /// # Errors
    /// If not; the message says why.
    fn check(&self) -> Result<()>;

    /// The image that a reference (a name, a digest or a source) stands for; `None` if there is none.
    ///
    /// # Errors
    /// If the upstream cannot be asked, or cannot import.
    fn find(&self, reference: &str) -> Result<Option<RemoteImage>>;

    /// The image's manifest.
    ///
    /// # Errors
    /// If it cannot be had.
    fn manifest(&self, image: &RemoteImage) -> Result<Unverified>;

    /// `len` bytes of an object from byte `offset` on.
    ///
    /// # Errors
    /// If they cannot be had, or others than so many came.
    fn read(&self, object: &Object, offset: u64, len: usize) -> Result<Unverified, ObjectError>;

    /// An object's Merkle leaves.
    ///
    /// # Errors
    /// If they cannot be had.
    fn leaves(&self, object: &Object) -> Result<Unverified, ObjectError>;

    /// What boots of the image read, if that is known there: a hint, which need not be true.
    fn profile(&self, _image: &RemoteImage) -> Option<Vec<u8>> {
        None
    }
}
