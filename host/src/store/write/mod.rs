//! Making images: an import, a commit, and a push to a bucket.
//!
//! `source` says where an image comes from, `commit` makes one of an image and a guest's changes, `push` sends one to a
//! bucket. The composefs crates, which write a repository, compile on Linux alone: `composefs` uses them, and
//! `unsupported` has the same functions for other systems. That is decided in this file and nowhere else. Images are read
//! in `image`; `upkeep` may import from here and not the other way round.

pub(in crate::store) mod commit;
#[cfg(target_os = "linux")]
pub(in crate::store) mod composefs;
#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
pub(in crate::store) mod composefs;
pub(in crate::store) mod import;
pub(in crate::store) mod push;
pub(in crate::store) mod request;
pub(in crate::store) mod source;

pub use composefs::{podman_storage, serve_if_storage_helper};
