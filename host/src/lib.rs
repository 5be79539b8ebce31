//! The host's side of lazyroot: the store, the object server, virtual machines and the command line.
//!
//! Each folder is a room. A room uses those to its right, never one to its left:
//!
//! `cli` -> `vm` -> `serve` -> `store` -> `lazyroot_proto`
//!
//! | room | what it does |
//! |---|---|
//! | `cli` | parses a command line, calls the other rooms, prints |
//! | `vm` | boots images in virtual machines, and reaches into running ones |
//! | `serve` | answers guests and other lazyroots, and records what they read |
//! | `store` | keeps images and objects, imports them, and fetches what is elsewhere |
//!
//! The files beside the rooms use no room: `human` prints amounts and times, `durable` renames, `text` makes foreign text
//! printable, `home` knows lazyroot's folders. The way of a READ and of a launch, threads and locks are in
//! `docs/src/explanation/architecture.md`.

#![deny(clippy::print_stderr)]

pub mod cli;
mod complain;
mod durable;
pub mod home;
mod human;
pub mod serve;
pub mod settings;
pub mod store;
pub mod text;
pub mod vm;
