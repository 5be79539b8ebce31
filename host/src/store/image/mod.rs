//! Reading images: what a manifest says, without mounting it.
//!
//! `handle` is an image that was found: its manifest, its index and its configuration. `tree` looks into the manifest,
//! whose verified bytes are in `manifest` and whose words for overlayfs are in `overlay`; `walk`, `listing`, `diff` and
//! `copy_out` go through it. `index` lists the objects of an image. `remote_images` asks upstreams for images that are not
//! here. Where the bytes of objects come from is in `objects`; nothing here opens a store or writes an image.

pub(in crate::store) mod config;
pub(in crate::store) mod copy_out;
pub(in crate::store) mod diff;
pub(in crate::store) mod handle;
pub(in crate::store) mod index;
pub(in crate::store) mod listing;
mod manifest;
mod overlay;
pub(in crate::store) mod remote_images;
pub(in crate::store) mod tree;
pub(in crate::store) mod walk;
