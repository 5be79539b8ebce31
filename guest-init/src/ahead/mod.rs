//! All that is fetched before a program asks for it.
//!
//! This folder decides what to ask for early, keeps what has arrived, and puts it where programs find it. It fetches
//! and verifies nothing itself: that is [`crate::content`]. It answers no request of the kernel: that is `crate::fuse`.

pub mod block_set;
pub mod budget;
pub mod kernel;
pub mod page_cache;
pub mod pieces;
pub mod profile;
pub mod ready_layer;
pub mod runs;
pub mod scan;
pub mod sequences;
