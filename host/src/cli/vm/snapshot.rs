//! `lazyroot snapshot`: the disk of a stopped persistent VM, kept under a name.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::vm::find::StoppedVm;

/// Keep the disk of a stopped persistent VM as it is now, under a name
#[derive(clap::Args)]
pub struct SnapshotArgs {
    /// Name or id of the VM
    vm: String,
    /// Name of the snapshot
    snapshot: String,
}

/// Keeps a disk.
pub fn snapshot(args: &SnapshotArgs, context: &Context) -> Result<ExitCode> {
    let vm = StoppedVm::find(context, &args.vm)?;
    vm.disks.snapshot(&vm.name, &args.snapshot)?;
    Ok(ExitCode::SUCCESS)
}
