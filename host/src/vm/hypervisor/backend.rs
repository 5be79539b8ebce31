//! What a kind of hypervisor is to lazyroot before a machine of it exists: its name, what it can give, what its guests
//! need, and how it is found on this machine.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::machine::{BoxFuture, Hypervisor, Network};
use crate::home::Home;
use crate::vm::check::Check;
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::{Kernel, KernelForm};

/// A kind of hypervisor. One value of each is in [`super::registry`].
pub trait Backend: Send + Sync {
    /// What `--hypervisor` calls it.
    fn name(&self) -> &'static str;

    /// The system that it runs on, if that is not the one lazyroot is mostly run on: for messages.
    fn platform(&self) -> Option<&'static str> {
        None
    }

    /// What may follow its name behind a colon: the ways to run a guest's instructions that can be asked for.
    fn accelerators(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it can give a machine.
    fn capabilities(&self) -> Capabilities;

    /// What a guest of this architecture must have to run on it.
    fn guest_needs(&self, arch: Arch) -> GuestNeeds;

    /// Looks at what of it is on this machine. Fails at nothing.
    fn detect(&self, home: &Home) -> Vec<Check>;

    /// It, as it is installed, for this kernel and initramfs, with the accelerator that was asked for.
    ///
    /// # Errors
    /// If it is not installed, or cannot run this kernel.
    fn make<'a>(
        &'a self,
        home: &'a Home,
        kernel: &'a Kernel,
        initramfs: &'a Path,
        accelerator: Option<&'static str>,
    ) -> BoxFuture<'a, Result<Box<dyn Hypervisor>>>;
}

/// What a hypervisor can give a machine. A plan is checked against this before anything is started.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// The networks that it has.
    pub networks: &'static [Network],
    /// Why it has no other.
    pub other_networks: &'static str,
    /// Whether guests may be of another architecture than this machine.
    pub foreign_guests: bool,
    /// Whether it shares folders of the host by virtio-fs.
    pub shares: bool,
    /// Whether it attaches disks.
    pub disks: bool,
    /// Whether it can halt a machine and let it go on.
    pub pause: bool,
}

/// What a guest must have to run on a hypervisor: the kernel's form, and what is in its initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestNeeds {
    /// How the guest finds its virtio devices.
    pub transport: VirtioTransport,
    /// The guest's name for its serial console: `ttyS0`.
    pub console: &'static str,
    /// The form of the kernel's file.
    pub kernel: KernelForm,
}

/// How a guest finds its virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioTransport {
    /// On a PCI bus.
    Pci,
    /// At addresses in memory, which the command line or a device tree names.
    Mmio,
}

/// What a launch wants of a hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct Wants<'a> {
    /// The kernel that the guest boots.
    pub kernel: &'a Kernel,
    /// Its network.
    pub network: Network,
    /// Whether it sees folders of the host.
    pub shares: bool,
    /// Whether it has a disk.
    pub disk: bool,
}

/// Checks that a hypervisor can give what a launch wants.
///
/// # Errors
/// If it cannot; says what to do without.
pub fn check(backend: &dyn Backend, wants: Wants<'_>) -> Result<()> {
    let name = backend.name();
    let can = backend.capabilities();
    let (arch, release) = (wants.kernel.bundle.arch, &wants.kernel.bundle.release);
    ensure!(
        can.foreign_guests || arch == Arch::HOST,
        "{name} runs guests of this machine's architecture, {}: kernel {release} is for {arch}",
        Arch::HOST
    );
    ensure!(can.networks.contains(&wants.network), "{}", can.other_networks);
    ensure!(can.shares || !wants.shares, "{name} cannot share folders of the host: leave out -v");
    ensure!(can.disks || !wants.disk, "{name} cannot attach a disk: leave out --persist");
    match backend.guest_needs(arch).transport {
        // Every bundle has the modules for it.
        VirtioTransport::Pci => Ok(()),
        VirtioTransport::Mmio => bail!("kernel {release} has no modules for {name}, whose devices are on no PCI bus"),
    }
}
