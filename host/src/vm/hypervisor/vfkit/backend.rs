//! vfkit as a backend: what it can give, what its guests need, and what of it is on this machine.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::hypervisor::Vfkit;
use super::program::VFKIT;
use crate::home::Home;
use crate::vm::check::{Check, Health};
use crate::vm::hypervisor::backend::{Backend, Capabilities, GuestNeeds, VirtioTransport};
use crate::vm::hypervisor::helpers::gvproxy::GVPROXY;
use crate::vm::hypervisor::machine::{BoxFuture, Hypervisor, Network};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::{Kernel, KernelForm};

/// vfkit.
pub struct VfkitBackend;

impl Backend for VfkitBackend {
    fn name(&self) -> &'static str {
        "vfkit"
    }

    fn platform(&self) -> Option<&'static str> {
        Some("macOS")
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            networks: &[Network::None, Network::User, Network::Nat],
            other_networks: "",
            foreign_guests: false,
            shares: true,
            disks: true,
            pause: true,
        }
    }

    fn guest_needs(&self, arch: Arch) -> GuestNeeds {
        GuestNeeds {
            transport: VirtioTransport::Pci,
            console: "hvc0",
            kernel: match arch {
                Arch::Aarch64 => KernelForm::Uncompressed,
                // The framework enters an x86 kernel by its boot protocol, not by PVH.
                Arch::X86_64 => KernelForm::AsFound,
            },
        }
    }

    /// vfkit, its signature, and gvproxy.
    fn detect(&self, _home: &Home) -> Vec<Check> {
        checks()
    }

    fn make<'a>(
        &'a self,
        _home: &'a Home,
        _kernel: &'a Kernel,
        _initramfs: &'a Path,
        _accelerator: Option<&'static str>,
    ) -> BoxFuture<'a, Result<Box<dyn Hypervisor>>> {
        Box::pin(async { Ok(Box::new(Vfkit::new()?) as Box<dyn Hypervisor>) })
    }
}

fn checks() -> Vec<Check> {
    let mut checks = vec![Check::of("vfkit", Health::Bad, VFKIT.look())];
    if cfg!(target_os = "macos") {
        checks.push(Check::of("code signing", Health::Bad, entitlement()));
    }
    checks.push(Check::of("gvproxy", Health::Warning, GVPROXY.look()));
    checks
}

/// Apple's framework runs VMs for programs that are signed with its entitlement: vfkit is, as it is installed, and
/// lazyroot need not be.
fn entitlement() -> Result<String> {
    const ENTITLEMENT: &str = "com.apple.security.virtualization";
    let vfkit = VFKIT.find()?;
    let mut command = Command::new("/usr/bin/codesign");
    command.args(["--display", "--entitlements", "-", "--xml"]).arg(&vfkit).stdin(Stdio::null());
    let output = command.output().context("cannot run /usr/bin/codesign")?;
    if String::from_utf8_lossy(&output.stdout).contains(ENTITLEMENT) {
        return Ok(format!("{} may run VMs; lazyroot needs no signature of its own", vfkit.display()));
    }
    bail!("{} is not signed with {ENTITLEMENT}: install it with '{}'", vfkit.display(), VFKIT.install)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_it() {
        for check in checks() {
            if check.health != Health::Good {
                let mend = check.mend.unwrap();
                assert!(mend.contains('\''), "no command mends it: {}: {mend}", check.name);
            }
        }
    }
}
