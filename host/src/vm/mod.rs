//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.

pub mod accel;
mod child;
pub mod console;
pub mod control;
pub mod exec;
pub mod hypervisor;
pub mod initramfs;
pub mod instance;
pub mod kernel;
pub mod launch;
pub mod log;
pub mod modules;
pub mod qemu;
mod qmp;
pub mod status;
pub mod stop;
mod unwrap;

pub use child::end_with_parent;
