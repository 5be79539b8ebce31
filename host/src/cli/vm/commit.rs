//! `lazyroot commit`: an image made of a VM.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::find::StoppedVm;
use crate::cli::vm::run::{self, ParseRun};
use crate::store::{ImageName, Store};
use crate::vm::guest::copy;
use crate::vm::instance::disks::Disks;
use crate::vm::instance::{State, Vms};

/// Make an image of a VM: its own with what the guest changed
///
/// A stopped VM must have been made with --persist; it is booted for a moment, with nothing running in it. Writing to the
/// disk of a running one waits meanwhile. Host name, machine id and resolv.conf stay as the image has them.
#[derive(clap::Args)]
pub struct CommitArgs {
    /// Name or id of the VM
    vm: String,
    /// Name of the new image
    image: String,
}

/// Makes an image of a VM.
pub fn commit(args: &CommitArgs, context: &Context, launched: Instant, parse: ParseRun) -> Result<ExitCode> {
    let name: ImageName = args.image.parse()?;
    let vm = Vms::open(&context.home)?.find(&args.vm)?;
    let vm_name = vm.record.name.clone();
    let image = if vm.state == State::Alive {
        let saved = Disks::open(&context.home)?.get(&vm_name).ok().filter(|_| vm.record.persistent);
        let store =
            Store::open(&context.home, saved.and_then(|saved| saved.store).or(context.store.clone()).as_deref())?;
        let base = store.resolve(&vm.record.image)?;
        store.ensure_can_commit(&base)?;
        let to = name.to_string();
        runtime()?.block_on(copy::upper(&vm.dir, move |layer| store.commit(&base, layer, &to)))
    } else {
        ensure!(
            vm.record.persistent,
            "VM '{vm_name}' has ended, and what it wrote is gone: only a VM made with --persist keeps it"
        );
        let StoppedVm { saved, claim: _claim, .. } = StoppedVm::find(context, &vm_name)?;
        run::commit(&vm_name, saved, name.as_str(), context, launched, parse)
    };
    let image = image.with_context(|| format!("VM '{vm_name}'"))?;
    print(&format!("{} {name}\n", image.id))
}
