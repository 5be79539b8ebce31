//! The composefs repository on this machine, and `Store`, which is one that is open.
//!
//! A *repository* is a folder as composefs documents it: `meta.json`, `objects/`, `images/HEX`, `images/refs/NAME`,
//! `streams/`, and lazyroot's own files in `lazyroot/`. A *store* (`store`) is an open repository, with upstreams for what
//! it does not have. `names` are the links that lead to images, `images` opens what they lead to. All of it works on the
//! layout, not through the composefs crates, and takes composefs' shared lock only while it writes: a store that serves for
//! days must not keep garbage collection waiting. What makes images is in `write`, what removes and checks them in `upkeep`.

pub(in crate::store) mod images;
pub(in crate::store) mod names;
pub(in crate::store) mod store;
