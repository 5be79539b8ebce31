//! The FUSE data layer: answers to the kernel's requests, from `/dev/fuse` or over io_uring.
//!
//! [`data_layer`] answers, whatever way a request comes; [`device`] and [`ring`] are the two ways. The bytes of the answers
//! come from [`crate::ahead`] and [`crate::content`]. The mounts themselves are made in [`crate::mount`].

pub mod abi;
pub mod data_layer;
pub mod device;
pub mod placement;
pub mod ring;
pub mod session;
