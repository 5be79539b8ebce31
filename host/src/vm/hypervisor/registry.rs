//! Which hypervisor runs a VM: the platform's, or the one asked for.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};

use crate::home::Home;
use crate::vm::hypervisor::machine::Hypervisor;
use crate::vm::hypervisor::qemu::Qemu;
use crate::vm::hypervisor::qemu::accelerator::{self, Accelerator};
use crate::vm::hypervisor::vfkit::Vfkit;
use crate::vm::kernel::bundle::Kernel;

/// What the user asked for with `--hypervisor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `qemu`, with KVM where it works; `qemu:kvm` or `qemu:tcg`.
    Qemu(Option<Accelerator>),
    /// `vfkit`.
    Vfkit,
}

impl Default for Choice {
    /// What the platform has.
    fn default() -> Self {
        if cfg!(target_os = "macos") { Self::Vfkit } else { Self::Qemu(None) }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "qemu" => Ok(Self::Qemu(None)),
            "qemu:kvm" => Ok(Self::Qemu(Some(Accelerator::Kvm))),
            "qemu:tcg" => Ok(Self::Qemu(Some(Accelerator::Tcg))),
            "vfkit" => Ok(Self::Vfkit),
            _ => Err(format!("there is no hypervisor '{text}': use qemu, qemu:kvm, qemu:tcg, or vfkit on macOS")),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vfkit => f.write_str("vfkit"),
            Self::Qemu(None) => f.write_str("qemu"),
            Self::Qemu(Some(accelerator)) => write!(f, "qemu:{accelerator}"),
        }
    }
}

/// The hypervisor for a VM with this kernel and initramfs.
///
/// # Errors
/// If it is not installed, or cannot run this kernel.
pub async fn make(home: &Home, choice: Choice, kernel: &Kernel, initramfs: &Path) -> Result<Box<dyn Hypervisor>> {
    match choice {
        Choice::Vfkit => Ok(Box::new(Vfkit::new()?)),
        Choice::Qemu(_) if !cfg!(target_os = "linux") => {
            bail!("QEMU's vsock needs Linux: leave out --hypervisor, or use vfkit")
        }
        Choice::Qemu(accelerator) => {
            let accelerator = accelerator::choose(home, kernel, initramfs, accelerator).await?;
            Ok(Box::new(Qemu::new(home, kernel.bundle.arch, accelerator)?))
        }
    }
}
