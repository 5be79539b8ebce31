//! Writing to the repository: everything that needs the composefs crates, which compile on Linux only.
//!
//! `import` is the way of an import; it takes in a `folder` or pulls from `oci`, then `import_check` looks at what is there.
//! `commit` merges a `layer` into an image. `collection` is what garbage collection needs of composefs. `folder_record`,
//! `folder_scan` and `object_stamps` are what an import remembers for the next one. `../unsupported.rs` has the functions
//! that this file exports, for other systems.

mod collection;
mod commit;
mod folder;
mod folder_record;
mod folder_scan;
mod import;
mod import_check;
mod layer;
mod object_stamps;
mod oci;
mod podman_storage;
mod repository;
mod threads;

pub(in crate::store) use collection::locked_for_collection;
pub(in crate::store) use commit::commit;
pub(in crate::store) use import::{repair, run as import};
pub(in crate::store) use oci::forget_name;
pub use oci::serve_if_storage_helper;
pub use podman_storage::storage_root as podman_storage;
pub(in crate::store) use repository::create;
