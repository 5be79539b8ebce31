//! The program in a VM's initramfs: PID 1, the daemon behind the root, and what both set up before the image's init runs.
//!
//! [`crate::mount`] mounts the image, and [`crate::agent`] runs programs for the host once the guest is up.

pub mod boot;
pub mod cmdline;
pub mod daemon;
pub mod network;
pub mod notify;
pub mod settings;
