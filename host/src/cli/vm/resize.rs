//! `lazyroot resize`: a larger disk for a stopped persistent VM.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::vm::find::StoppedVm;
use crate::cli::vm::sizes;

/// Make the disk of a stopped persistent VM larger
#[derive(clap::Args)]
pub struct ResizeArgs {
    /// Name or id of the VM
    vm: String,
    /// Its new size: MiB, or with a suffix (512M, 20G)
    #[arg(value_parser = sizes::disk_size)]
    size: u64,
}

/// Makes a disk larger.
pub fn resize(args: &ResizeArgs, context: &Context) -> Result<ExitCode> {
    let vm = StoppedVm::find(context, &args.vm)?;
    vm.disks.resize(&vm.name, args.size)?;
    Ok(ExitCode::SUCCESS)
}
