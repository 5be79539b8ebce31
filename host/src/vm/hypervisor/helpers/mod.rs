//! Programs of others that run beside a hypervisor, each a component that any backend can use.
//!
//! virtiofsd shares folders, vhost-device-vsock carries vsock, gvproxy is a network. How a program is found is in
//! [`crate::vm::programs`]; how a hypervisor is told of their sockets is in its own folder.

mod daemon;
pub mod gvproxy;
pub mod vhost_device_vsock;
pub mod virtiofsd;
