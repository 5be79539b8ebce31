//! QEMU as a backend: what it can give, what its guests need, and what of it is on this machine.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::accelerator::{self, Accelerator, Trials};
use super::arguments::{NETWORKS, OTHER_NETWORKS};
use super::hypervisor::Qemu;
use super::program::{console, program};
use crate::home::Home;
use crate::vm::check::{Check, Health};
use crate::vm::hypervisor::backend::{Backend, Capabilities, GuestNeeds, VirtioTransport};
use crate::vm::hypervisor::helpers::vhost_device_vsock;
use crate::vm::hypervisor::machine::{BoxFuture, Hypervisor};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::{Kernel, KernelForm};

/// QEMU.
pub struct QemuBackend;

impl Backend for QemuBackend {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn accelerators(&self) -> &'static [&'static str] {
        const { &[Accelerator::Kvm.name(), Accelerator::Tcg.name()] }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            networks: NETWORKS,
            other_networks: OTHER_NETWORKS,
            // Emulated.
            foreign_guests: true,
            shares: true,
            disks: true,
            pause: true,
        }
    }

    fn guest_needs(&self, arch: Arch) -> GuestNeeds {
        GuestNeeds {
            transport: VirtioTransport::Pci,
            console: console(arch),
            // An x86 kernel is entered by PVH, which saves its decompressor's time.
            kernel: KernelForm::Uncompressed,
        }
    }

    fn detect(&self, home: &Home) -> Vec<Check> {
        let trials = program(Arch::HOST).map(|program| accelerator::trials(home, &program)).unwrap_or_default();
        vec![check_program(), check_kvm(Check::device("kvm", Path::new("/dev/kvm"), NO_KVM), trials), check_vsock(home)]
    }

    fn make<'a>(
        &'a self,
        home: &'a Home,
        kernel: &'a Kernel,
        initramfs: &'a Path,
        accelerator: Option<&'static str>,
    ) -> BoxFuture<'a, Result<Box<dyn Hypervisor>>> {
        Box::pin(async move {
            if !cfg!(target_os = "linux") {
                bail!("QEMU's vsock needs Linux: leave out --hypervisor, or use vfkit");
            }
            let requested = accelerator.and_then(Accelerator::named);
            let accelerator = accelerator::choose(home, kernel, initramfs, requested).await?;
            Ok(Box::new(Qemu::new(home, kernel.bundle.arch, accelerator)?) as Box<dyn Hypervisor>)
        })
    }
}

/// What to do where `/dev/kvm` does not open.
const NO_KVM: &str =
    "VMs run, slowly, on an emulated processor; join the group kvm, or turn on virtualisation in the firmware";

fn check_program() -> Check {
    const NAME: &str = "hypervisor";
    let program = match program(Arch::HOST) {
        Ok(program) => program,
        Err(error) => return Check::bad(NAME, "QEMU is not installed", format!("{error:#}")),
    };
    let output = Command::new(&program).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = version.lines().next().unwrap_or("of unknown version").to_owned();
    let found = format!("{} {version}", program.display());
    // Emulated kernels crash at random under 7.2.
    match version.split("version ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok()) {
        Some(8..) => Check::good(NAME, found),
        _ => Check::warning(
            NAME,
            found,
            "QEMU 8 or later is reliable without KVM too: install it from your distribution's backports",
        ),
    }
}

/// What opening the device and the remembered trial boots say together.
fn check_kvm(opened: Check, trials: Trials) -> Check {
    match (opened.health, trials) {
        (Health::Good, Trials { failed: 0, .. }) | (Health::Warning | Health::Bad, _) => opened,
        (Health::Good, Trials { succeeded, failed }) => Check::warning(
            "kvm",
            format!("{} opens, but KVM did not boot {failed} of {} kernels tried", opened.found, succeeded + failed),
            "VMs with such a kernel run, slowly, on an emulated processor; '--hypervisor qemu:kvm' uses KVM all the same",
        ),
    }
}

fn check_vsock(home: &Home) -> Check {
    const NAME: &str = "vsock";
    match File::options().read(true).write(true).open("/dev/vhost-vsock") {
        Ok(_) => Check::good(NAME, "/dev/vhost-vsock"),
        Err(error) => match vhost_device_vsock::program(home) {
            Ok(program) => Check::good(NAME, format!("{} (/dev/vhost-vsock: {error})", program.display())),
            Err(missing) => Check::bad(NAME, format!("/dev/vhost-vsock: {error}"), format!("{missing:#}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_not_well_where_a_trial_boot_failed() {
        let opened = || Check::good("kvm", "/dev/kvm");
        let after = |succeeded, failed| check_kvm(opened(), Trials { succeeded, failed });
        assert_eq!(after(0, 0).health, Health::Good);
        assert_eq!(after(2, 0).health, Health::Good);
        assert_eq!((after(0, 1).health, after(1, 1).health), (Health::Warning, Health::Warning));
        assert!(after(1, 2).found.contains("did not boot 2 of 3 kernels"));
        let closed = Check::warning("kvm", "/dev/kvm: permission denied", "join the group");
        assert!(check_kvm(closed, Trials { succeeded: 0, failed: 1 }).found.contains("permission denied"));
    }
}
