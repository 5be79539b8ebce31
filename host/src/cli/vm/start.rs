//! `lazyroot start`: booting a stopped persistent VM again.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cli::background;
use crate::cli::context::Context;
use crate::cli::vm::find::StoppedVm;
use crate::cli::vm::run::{self, ParseRun};

/// Start a stopped VM that was made with --persist
#[derive(clap::Args)]
pub struct StartArgs {
    /// Name or id of the VM
    vm: String,
}

/// Starts a VM again.
pub fn start(args: &StartArgs, context: &Context, launched: Instant, parse: ParseRun) -> Result<ExitCode> {
    let vm = StoppedVm::find(context, &args.vm)?;
    if !background::is_here() {
        // For the one in the background.
        drop(vm);
        return background::start();
    }
    run::start(&vm.name, vm.saved, context, launched, parse)
}
