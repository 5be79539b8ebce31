//! QEMU's programs, one for each architecture, and the machines that they emulate.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::vm::kernel::arch::Arch;
use crate::vm::programs;

/// QEMU's machine: `microvm` would be smaller, but hung in 3 of 38 boots at its clock's calibration.
pub fn machine(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "q35",
        Arch::Aarch64 => "virt",
    }
}

/// The guest's name for the serial port of [`machine`].
pub fn console(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => "ttyAMA0",
    }
}

/// QEMU for guests of an architecture.
///
/// # Errors
/// If it is not installed.
pub fn program(arch: Arch) -> Result<PathBuf> {
    let name = format!("qemu-system-{arch}");
    let (debian, fedora) = match arch {
        Arch::X86_64 => ("qemu-system-x86", "qemu-system-x86"),
        Arch::Aarch64 => ("qemu-system-arm", "qemu-system-aarch64"),
    };
    programs::find(&name, &[]).with_context(|| {
        format!(
            "{name}, which runs {arch} guests, is not installed: 'apt-get install {debian}' on Debian, 'dnf install \
             {fedora}' on Fedora"
        )
    })
}
