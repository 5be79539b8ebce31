//! `lazyroot stop`: ending VMs, gently or hard.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::cli::context::{Context, runtime};
use crate::vm::instance::stop;
use crate::vm::instance::{State, Vms};

/// Stop VMs: ask each guest to shut down, and end it hard if it takes too long
#[derive(clap::Args)]
pub struct StopArgs {
    /// Seconds that a guest may take; 0 ends it at once
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    time: u64,
    /// All that run
    #[arg(short, long, conflicts_with = "vms")]
    all: bool,
    /// Names or ids of the VMs
    #[arg(required_unless_present = "all", value_name = "VM")]
    vms: Vec<String>,
}

/// Stops VMs.
pub fn stop(args: &StopArgs, context: &Context) -> Result<ExitCode> {
    let vms = Vms::open(&context.home)?;
    let chosen = if args.all {
        vms.list()?.into_iter().filter(|vm| vm.state == State::Alive).collect()
    } else {
        args.vms.iter().map(|name| vms.find(name)).collect::<Result<Vec<_>>>()?
    };
    // To stop what has ended is no error: that is how it was to be.
    let alive: Vec<_> = chosen.into_iter().filter(|vm| vm.state == State::Alive).collect();
    let within = Duration::from_secs(args.time);
    runtime()?.block_on(async {
        let stops: Vec<_> =
            alive.into_iter().map(|vm| tokio::spawn(async move { stop::stop(&vm, within).await })).collect();
        for stop in stops {
            stop.await??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(ExitCode::SUCCESS)
}
