//! Hypervisors.

pub mod checks;
pub mod console;
pub mod helpers;
pub mod machine;
pub mod qemu;
pub mod registry;
pub mod vfkit;
