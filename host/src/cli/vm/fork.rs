//! `lazyroot fork`: a persistent VM made from another one, or from its snapshot.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::vm::find::StoppedVm;
use crate::store::Store;
use crate::vm::instance::Vms;
use crate::vm::instance::disks::Disks;

/// Make a persistent VM from a stopped one, or from a snapshot of it
#[derive(clap::Args)]
pub struct ForkArgs {
    /// VM, or VM@SNAPSHOT
    from: String,
    /// Name of the new VM
    name: String,
}

/// Forks a VM.
pub fn fork(args: &ForkArgs, context: &Context) -> Result<ExitCode> {
    let (from, snapshot) = match args.from.split_once('@') {
        Some((from, snapshot)) => (from, Some(snapshot)),
        None => (args.from.as_str(), None),
    };
    let vms = Vms::open(&context.home)?;
    // A snapshot does not change while its VM runs.
    let (from, disks, _claim) = match snapshot {
        Some(_) => (vms.find(from)?.record.name, Disks::open(&context.home)?, None),
        None => StoppedVm::find(context, from).map(|vm| (vm.name, vm.disks, Some(vm.claim)))?,
    };
    vms.check_free(&args.name)?;
    disks.fork(&from, snapshot, &args.name)?;
    let saved = disks.get(&args.name)?;
    let store = Store::open(&context.home, saved.store.as_deref())?;
    // Of an upstream's image there is nothing here to keep.
    if let Ok(image) = store.resolve(&saved.image) {
        disks.keep_image(&args.name, &store, &image);
    }
    Ok(ExitCode::SUCCESS)
}
