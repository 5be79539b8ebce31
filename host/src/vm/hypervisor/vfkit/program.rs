//! Which vfkit we need.

use crate::vm::programs::Requirement;

/// The vfkit that we need: 0.6.1 has the memory balloon.
pub const VFKIT: Requirement = Requirement {
    name: "vfkit",
    version_option: "--version",
    oldest: (0, 6, 1),
    purpose: "runs VMs on macOS",
    install: "brew install vfkit",
    upgrade: "brew upgrade vfkit",
};
