//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.

pub mod accel;
mod child;
pub mod exec;
pub mod hypervisor;
pub mod initramfs;
mod instance;
pub mod kernel;
pub mod launch;
pub mod modules;
pub mod qemu;
mod unwrap;

pub use child::end_with_parent;
