//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.

pub mod accel;
pub mod arch;
mod child;
pub mod console;
pub mod control;
pub mod exec;
pub mod factory;
pub mod hypervisor;
pub mod initramfs;
pub mod instance;
pub mod kernel;
pub mod launch;
pub mod log;
pub mod modules;
pub mod programs;
pub mod qemu;
mod qmp;
pub mod status;
pub mod stop;
pub mod unwrap;
pub mod vfkit;

pub use child::end_with_parent;
