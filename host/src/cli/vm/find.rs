//! Finding the VM that a verb is about, in the state that the verb needs.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};

use crate::cli::context::Context;
use crate::vm::instance::disks::{Disks, Saved};
use crate::vm::instance::{Record, State, VmEntry, Vms};

/// A persistent VM that does not run, claimed until this is dropped.
pub struct StoppedVm {
    /// The VM's name.
    pub name: String,
    /// The disks of persistent VMs.
    pub disks: Disks,
    /// The arguments that the VM is started with.
    pub saved: Saved,
    /// The claim on the VM's disk.
    pub claim: File,
}

impl StoppedVm {
    /// The stopped VM that `text` means.
    ///
    /// # Errors
    /// If there is none, it runs, or somebody else has claimed it.
    pub fn find(context: &Context, text: &str) -> Result<Self> {
        let VmEntry { record: Record { name, .. }, state, .. } = Vms::open(&context.home)?.find(text)?;
        ensure!(state != State::Alive, "VM '{name}' is running: 'lazyroot stop {name}' first");
        let disks = Disks::open(&context.home)?;
        let claim = disks.claim(&name)?;
        let saved = disks.get(&name)?;
        let claim = claim.with_context(|| format!("VM '{name}' was removed meanwhile"))?;
        Ok(Self { name, disks, saved, claim })
    }
}

/// The VM that `name` means, which must be alive.
pub fn find_running(context: &Context, name: &str) -> Result<VmEntry> {
    let vm = Vms::open(&context.home)?.find(name)?;
    ensure!(vm.state == State::Alive, "VM '{0}' has ended: 'lazyroot logs {0}' may say why", vm.record.name);
    Ok(vm)
}
