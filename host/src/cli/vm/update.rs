//! `lazyroot update`: what a stopped persistent VM is started with.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::vm::find::StoppedVm;
use crate::cli::vm::sizes;
use crate::vm::kernel::bundle::Kernels;

/// Change what a stopped persistent VM is started with
#[derive(clap::Args)]
pub struct UpdateArgs {
    /// Virtual CPUs
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    cpus: Option<u32>,
    /// Memory: MiB, or with a suffix (512M, 2G)
    #[arg(long, value_parser = sizes::memory)]
    memory: Option<u32>,
    /// Kernel to boot: a release from 'lazyroot kernel ls'
    #[arg(long, value_name = "RELEASE")]
    kernel: Option<String>,
    /// Name or id of the VM
    vm: String,
}

/// Changes what a VM is started with.
pub fn update(args: UpdateArgs, context: &Context) -> Result<ExitCode> {
    let StoppedVm { name, disks, mut saved, claim: _claim } = StoppedVm::find(context, &args.vm)?;
    if let Some(release) = &args.kernel {
        Kernels::open(&context.home)?.get(release)?;
    }
    saved.cpus = args.cpus.or(saved.cpus);
    saved.memory_mib = args.memory.or(saved.memory_mib);
    saved.kernel = args.kernel.or(saved.kernel);
    disks.set(&name, &saved)?;
    Ok(ExitCode::SUCCESS)
}
