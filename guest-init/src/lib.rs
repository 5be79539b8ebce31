//! lazyroot in the guest: the data plane, and the init that mounts an image with it.
//!
//! Each folder is a room. A room uses those to its right, never one to its left:
//!
//! `init`, `agent` -> `mount` -> `fuse` -> `ahead` -> `content` -> `link` -> `lazyroot_proto`
//!
//! | room | what it does |
//! |---|---|
//! | `link` | the session with the host: requests, replies, deadlines, reconnects |
//! | `content` | fetches objects over the link and verifies them |
//! | `ahead` | decides what to fetch before a program asks, and where it waits |
//! | `fuse` | answers the kernel's requests |
//! | `mount` | makes the mounts of an image, and the file system for its changes |
//! | `agent` | runs programs for the host, in a VM |
//! | `init` | PID 1 of a VM and the daemon behind its root; uses the agent, too |
//!
//! The files beside the rooms use no room. All but `init` and `agent` runs on any Linux: so `lazyroot mount` shows an image
//! without a VM. The way of a READ, threads and locks are in `docs/src/explanation/architecture.md`.

#![deny(clippy::print_stderr)]

mod agent;
mod ahead;
mod clock;
pub mod complain;
mod content;
mod fuse;
pub mod init;
mod layer_guard;
pub mod link;
pub mod mount;
mod sys;
mod threads;
