//! What a guest boots: kernel bundles, the parts of kernel files, modules and the initramfs.
//!
//! Nothing here knows of hypervisors or of running VMs. What a bundle is made from is in `bundle`; how a kernel file is
//! unpacked, in [`unwrap`].

pub mod arch;
pub mod bundle;
pub mod initramfs;
mod lz4;
pub mod modules;
pub mod unwrap;
