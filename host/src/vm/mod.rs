//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.

pub mod guest;
pub mod hypervisor;
pub mod instance;
pub mod kernel;
pub mod launch;
pub mod log;
pub mod podman_machine;
pub mod process;
pub mod programs;
