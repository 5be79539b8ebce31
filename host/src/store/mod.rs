//! The store: images and the bytes of their objects, on this machine and at upstreams.
//!
//! A *repository* is a folder that composefs documents. A *store* ([`Store`], `repository/store.rs`) is a repository that
//! is open, with lazyroot's own files in it (`files.rs`) and with upstreams for what it does not have.
//!
//! Where is an object read? [`Store::source`] -> `objects/chain.rs`: first `objects/local.rs` (a file of the repository),
//! then `objects/cache` (the user's cache folder), then `objects/upstream` (another lazyroot, a bucket).
//!
//! What is written at an import? `write/import.rs` locks the store; `write/composefs/import.rs` writes objects and the
//! manifest, checks and syncs them; `repository/names.rs` writes the name last.
//!
//! Rooms import from those to their right: `open`, `resolve` -> `upkeep` -> `write` -> `repository` -> `image` -> `objects`.
//! `reads` (boot profiles and traces), `files`, `name` and `progress` import from no room.
//!
//! The rule for [`Store`]: its fields, opening and names are in `repository`. Another room adds a verb to it with an
//! `impl Store` in the file that has the verb's name; whatever else a room does is a function over `&Store`.

mod files;
mod image;
mod name;
pub(crate) mod objects;
mod open;
mod progress;
mod reads;
mod repository;
mod resolve;
mod upkeep;
mod write;

pub use image::config::ImageConfig;
pub use image::copy_out::{LeftOut, copy_out};
pub use image::diff::{Aspect, Change, Fetch, compare_trees, fetch_between};
pub use image::handle::{Image, ImageSummary};
pub use image::index::ImageIndex;
pub use image::listing::{Folder, Listing, Name};
pub use image::remote_images::RemoteImages;
pub use image::tree::{Census, Content, Node, Tree};
pub use image::walk::{Kind, TreeEntry, Walk};
pub use name::{ImageName, ParseNameError};
pub use objects::cache::{CacheSize, CacheUse};
pub use objects::local::LocalObjects;
pub(crate) use objects::source::copy_nodes;
pub use objects::source::{Object, ObjectError, ObjectSource};
pub use objects::upstream::{
    Address as UpstreamAddress, Compression as UpstreamCompression, Spec as UpstreamSpec, Traffic,
    check as check_upstream,
};
pub use progress::Progress;
pub use reads::boot_profile::{BOOT, Entry, Profile, ProfileFile};
pub use reads::trace::{Milestone, Trace, TraceFile};
pub use repository::store::Store;
pub use upkeep::gc::{Collect, CollectionReport};
pub use upkeep::pins::{Pin, PinRecord};
pub use upkeep::remove::Removal;
pub use upkeep::stats::StoreStats;
pub use upkeep::usage::Usage;
pub use upkeep::verify::{Damage, Verification};
pub use write::push::Pushed;
pub use write::request::Rehash;
pub use write::source::Source;
pub use write::{podman_storage, serve_if_storage_helper};
