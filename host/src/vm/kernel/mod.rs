//! What a guest boots: kernel bundles, what a kernel file holds, modules and the initramfs.
//!
//! [`bundle`] keeps kernels and finds them again; [`import`] makes bundles of what distributions ship, with [`unwrap`] for
//! the kernel file and [`modules`] for the rest. Nothing here knows of hypervisors or of running VMs: those are next
//! door, in [`super::hypervisor`] and [`super::instance`].

pub mod arch;
pub mod bundle;
mod files;
pub mod import;
pub mod initramfs;
mod lz4;
pub mod modules;
pub mod unwrap;
