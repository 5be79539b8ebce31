//! lazyroot in the guest: the data plane, and the init that mounts an image with it.
//!
//! The data plane (`link`, `objects`, `datafs`, `mount`) runs on any Linux, which is how `lazyroot mount` shows
//! an image without a VM. `boot` and `agent` are for the VM alone.

pub mod datafs;
pub mod link;
mod loopdev;
pub mod mount;
pub mod objects;
mod sys;
