//! Looking after a store: what uses an image, what can be removed, what is damaged and how much room all of it takes.
//!
//! `pins` keeps an image while something uses it, `gc` removes what nothing needs, `verify` checks objects and mends them,
//! `usage` and `stats` count. Nothing here makes an image: that is `write`, which must not import from here.

pub(in crate::store) mod gc;
pub(in crate::store) mod pins;
pub(in crate::store) mod remove;
pub(in crate::store) mod repair;
pub(in crate::store) mod stats;
pub(in crate::store) mod usage;
pub(in crate::store) mod verify;
