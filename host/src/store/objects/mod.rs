//! Where the bytes of objects come from.
//!
//! Everything here gives bytes for a digest and a size: the local repository (`local`), the cache folder (`cache`), other
//! lazyroots and buckets (`upstream`), and all of them in a row (`chain`). `source` holds the trait that they share and its
//! errors. Nothing here knows what an image is or opens a store: manifests are read in `image`, which may import from here
//! and not the other way round.

pub(in crate::store) mod cache;
pub(in crate::store) mod chain;
pub(in crate::store) mod check;
pub(in crate::store) mod checked_copy;
pub(in crate::store) mod local;
pub(crate) mod lru;
mod nowait;
pub(in crate::store) mod source;
pub(in crate::store) mod upstream;
