//! Where images and objects come from: the composefs repository, importing into it, and looking inside.

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
pub use upkeep::gc::{Collect, Collected};
pub use upkeep::pins::{Pin, PinRecord};
pub use upkeep::remove::Removed;
pub use upkeep::stats::StoreStats;
pub use upkeep::usage::Usage;
pub use upkeep::verify::{Damage, Verified};
pub use write::push::Pushed;
pub use write::request::Rehash;
pub use write::source::Source;
pub use write::{podman_storage, serve_if_storage_helper};
