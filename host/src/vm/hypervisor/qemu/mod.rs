//! QEMU on Linux, for guests of this machine's architecture and, emulated, of others: direct kernel boot, a serial
//! console, vsock, and nothing else.
//!
//! Where the host's kernel has vhost_vsock the guest's connections arrive at AF_VSOCK; elsewhere vhost-device-vsock, a
//! process of its own beside QEMU, brings them to a unix socket. That program and virtiofsd are in [`super::helpers`].

pub mod accelerator;
mod arguments;
mod backend;
mod hypervisor;
mod machine;
mod program;
mod qmp;
mod vsock;

pub use backend::QemuBackend;
pub use hypervisor::Qemu;
pub use program::{machine, program};
