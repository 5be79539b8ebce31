//! The host's side of lazyroot: the store, the object server, virtual machines and the command line.
//!
//! Arrows run one way: `cli -> vm -> serve -> store`; all may use `complain`, `durable`, `home`, `human` and `text`. `settings`
//! is what `cli` reads.

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
