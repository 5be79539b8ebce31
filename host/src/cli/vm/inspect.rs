//! `lazyroot inspect`: all about one VM, as JSON.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::report::report;
use crate::vm::instance::Vms;

/// Show all about a VM, as JSON
#[derive(clap::Args)]
pub struct InspectArgs {
    /// Name or id of the VM
    vm: String,
}

/// Shows one VM.
pub fn inspect(args: &InspectArgs, context: &Context) -> Result<ExitCode> {
    let vm = Vms::open(&context.home)?.find(&args.vm)?;
    let shown = runtime()?.block_on(report(vm));
    print(&(serde_json::to_string_pretty(&shown)? + "\n"))
}
