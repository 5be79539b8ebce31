//! vfkit on macOS: Apple's Virtualization framework by its command line, directly into the kernel.
//!
//! vfkit brings the connections that a guest opens to one vsock port to one unix socket of ours. It is told what to do
//! over HTTP on another. For a guest's network there is the framework's NAT, or gvproxy, a process of its own.
//!
//! Nothing here needs macOS but vfkit itself.

pub mod arguments;
mod backend;
mod hypervisor;
mod program;
pub mod rest;

pub use backend::VfkitBackend;
pub use hypervisor::Vfkit;
