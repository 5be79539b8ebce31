//! `lazyroot pause` and `resume`: halting a VM's processors, and letting them go on.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::context::{Context, runtime};
use crate::cli::vm::find::find_running;
use crate::vm::instance::control::{self, OrderKind};

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
