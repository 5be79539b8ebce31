//! What an image's objects contain: fetched over [`crate::link`] and checked against their digests.
//!
//! Small objects travel whole, of large ones the ranges that are read and the Merkle tree nodes that prove them.
//! Nothing here decides what to fetch early: that is [`crate::ahead::scan`], which uses this folder.

pub mod cache;
pub mod image_file;
pub mod merkle;
pub mod small;
