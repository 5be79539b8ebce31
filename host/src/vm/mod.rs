//! Virtual machines: kernels, the initramfs, hypervisors, and the life of a running VM.

pub mod exec;
