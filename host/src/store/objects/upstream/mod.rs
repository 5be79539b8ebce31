//! Other places that have images: another lazyroot (`peer`, over what `dial` connects), or a bucket (`bucket`).
//!
//! What they send is [`Unverified`](lazyroot_proto::Unverified): nobody can read it. [`Upstreams`] asks them in turn and
//! checks what comes against the digests of the image, so that nothing but [`Verified`](lazyroot_proto::Verified) bytes
//! leaves this folder; hints, such as what boots read, are what they are. What was fetched is kept by the neighbour,
//! `cache`. Which upstreams there are is told by the command line and the settings (`address`), not here.

mod address;
pub(in crate::store) mod bucket;
mod dial;
mod link_speed;
mod peer;
mod podman_machine;
pub(in crate::store) mod runtime;
mod source;
mod upstreams;

use std::sync::Arc;

use anyhow::Result;

pub use address::{Address, Compression, Spec};
pub use source::{RemoteImage, Upstream};
pub(in crate::store) use upstreams::Discovery;
pub use upstreams::{Traffic, Upstreams};

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
