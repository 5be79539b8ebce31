//! `lazyroot rm`: removing VMs, their logs and their disks.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::{Context, runtime};
use crate::vm::instance::stop;
use crate::vm::instance::{State, Vms};

/// Remove VMs that have ended: their logs and their names
#[derive(clap::Args)]
pub struct RmArgs {
    /// Those that run too: they are ended hard
    #[arg(short, long)]
    force: bool,
    /// All that have ended; with --force, all
    #[arg(short, long, conflicts_with = "vms")]
    all: bool,
    /// Names or ids of the VMs
    #[arg(required_unless_present = "all", value_name = "VM")]
    vms: Vec<String>,
}

/// Removes VMs.
pub fn rm(args: &RmArgs, context: &Context) -> Result<ExitCode> {
    let vms = Vms::open(&context.home)?;
    let chosen = if args.all {
        vms.list()?.into_iter().filter(|vm| args.force || vm.state != State::Alive).collect()
    } else {
        args.vms.iter().map(|name| vms.find(name)).collect::<Result<Vec<_>>>()?
    };
    for vm in chosen {
        if args.force {
            runtime()?.block_on(stop::remove(&context.home, &vm))?;
        } else {
            vms.remove(&vm)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
