//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.

pub mod accel;
pub mod arch;
pub mod checks;
mod child;
pub mod console;
pub mod control;
pub mod copy;
pub mod exec;
pub mod factory;
pub mod hypervisor;
pub mod initramfs;
pub mod instance;
pub mod kernel;
pub mod launch;
pub mod log;
mod lz4;
pub mod modules;
pub mod persist;
pub mod podman;
pub mod ports;
pub mod programs;
pub mod qemu;
mod qmp;
pub mod ready;
pub mod ssh;
pub mod status;
pub mod stop;
pub mod unwrap;
pub mod vfkit;
mod virtiofsd;
pub mod volume;

pub use child::end_with_parent;
