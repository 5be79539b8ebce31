//! `lazyroot stop`, `wait`, `rm`, `pause` and `resume`: the life of VMs that are there.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::exec::find_running;
use crate::vm::instance::control::{self, OrderKind};
use crate::vm::instance::stop;
use crate::vm::instance::{End, State, Vms};

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

/// Wait until VMs have ended, and print the exit status of each
#[derive(clap::Args)]
pub struct WaitArgs {
    /// Names or ids of the VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
}

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

/// Halt a VM's processors; its memory stays
#[derive(clap::Args)]
pub struct PauseArgs {
    /// Name or id of the VM
    vm: String,
}

/// Let a paused VM go on
#[derive(clap::Args)]
pub struct ResumeArgs {
    /// Name or id of the VM
    vm: String,
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

/// Waits for VMs.
pub fn wait(args: &WaitArgs, context: &Context) -> Result<ExitCode> {
    let vms = Vms::open(&context.home)?;
    let chosen = args.vms.iter().map(|name| vms.find(name)).collect::<Result<Vec<_>>>()?;
    let mut failed = Vec::new();
    for vm in chosen {
        let name = &vm.record.name;
        match vm.wait()? {
            Some(End { status: Some(status), .. }) => {
                print(&format!("{status}\n"))?;
            }
            Some(End { reason, .. }) => failed.push(format!("VM '{name}': {}", reason.unwrap_or_default())),
            None if vm.state == State::Stopped => {
                failed.push(format!("VM '{name}' is stopped: 'lazyroot start {name}'"))
            }
            None if vm.record.keep => failed.push(format!("VM '{name}' is lost: its lazyroot was killed")),
            // Nobody asked to know: its folder went with it.
            None => (),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(ExitCode::SUCCESS)
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

/// Pauses a VM.
pub fn pause(args: &PauseArgs, context: &Context) -> Result<ExitCode> {
    give_order(context, &args.vm, OrderKind::Pause)
}

/// Resumes a VM.
pub fn resume(args: &ResumeArgs, context: &Context) -> Result<ExitCode> {
    give_order(context, &args.vm, OrderKind::Resume)
}

fn give_order(context: &Context, name: &str, order: OrderKind) -> Result<ExitCode> {
    let vm = find_running(context, name)?;
    runtime()?.block_on(control::order(&vm.dir, order)).with_context(|| format!("VM '{}'", vm.record.name))?;
    Ok(ExitCode::SUCCESS)
}
