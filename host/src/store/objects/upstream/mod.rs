//! Other places that have images: another lazyroot, or a bucket.
//!
//! What they send is not trusted: [`verified`] checks everything against the digests of the image.

mod address;
pub(in crate::store) mod bucket;
mod dial;
mod peer;
mod podman_machine;
pub(in crate::store) mod runtime;
pub(in crate::store) mod verified;

use std::sync::Arc;

use anyhow::Result;
use lazyroot_proto::ObjectId;

pub use address::{Address, Compression, Spec};
pub use verified::{Traffic, Upstreams};

use super::source::ObjectSource;

/// An image as an upstream describes it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The manifest's digest.
    pub id: ObjectId,
    /// The manifest's size in bytes.
    pub manifest_size: u64,
    /// Its name there, if it was found by one.
    pub name: Option<String>,
    /// Its OCI configuration, JSON.
    pub config: Option<Vec<u8>>,
}

/// Somewhere else that has images and their objects. As an [`ObjectSource`] it gives bytes that nobody has checked.
pub trait Upstream: ObjectSource {
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
    fn find(&self, reference: &str) -> Result<Option<Found>>;

    /// The image's manifest, not checked.
    ///
    /// # Errors
    /// If it cannot be had.
    fn manifest(&self, image: &Found) -> Result<Vec<u8>>;

    /// What boots of the image read, if that is known there: a hint, which need not be true.
    fn profile(&self, _image: &Found) -> Option<Vec<u8>> {
        None
    }
}

/// The upstream that `spec` describes. Nothing is connected yet.
///
/// # Errors
/// If the description makes no sense, as for a bucket without a region or endpoint.
pub fn open(spec: &Spec) -> Result<Arc<dyn Upstream>> {
    let dial = match &spec.url {
        Address::Ssh { destination, port } => dial::Dial::ssh(destination, *port, &spec.program),
        Address::PodmanMachine(machine) => podman_machine::dial(machine.as_deref(), &spec.program),
        Address::Command(command) => dial::Dial::command(command),
        Address::Unix(path) => dial::Dial::Unix(path.clone()),
        Address::Bucket(url) => return Ok(Arc::new(bucket::Bucket::open(url)?)),
    };
    Ok(Arc::new(peer::Peer::new(spec.url.to_string(), dial, spec.compression)))
}

/// Asks the upstream that `spec` describes whether it is there.
///
/// # Errors
/// If it is not, or is none.
pub fn check(spec: &Spec) -> Result<()> {
    open(spec)?.check()
}
