//! lazyroot in the guest: the data plane, and the init that mounts an image with it.
//!
//! The data plane (`link`, `objects`, `datafs`, `session`, `mount`) runs on any Linux, which is how `lazyroot mount` shows
//! an image without a VM. The others are for the VM alone: `boot` is PID 1, `daemon` the process behind the
//! root, `agent` runs programs for the host.

#![deny(clippy::print_stderr)]

mod agent;
mod ahead;
mod clock;
pub mod complain;
mod content;
mod fuse;
pub mod init;
mod layer_guard;
pub mod link;
pub mod mount;
mod placement;
mod sys;
mod threads;
