//! `lazyroot port`: which ports of this machine lead into a VM.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::context::Context;
use crate::cli::output::print;
use crate::vm::instance::Vms;

/// Show which ports of this machine lead into a VM
#[derive(clap::Args)]
pub struct PortArgs {
    /// Name or id of the VM
    vm: String,
}

/// Shows ports.
pub fn port(args: &PortArgs, context: &Context) -> Result<ExitCode> {
    let vm = Vms::open(&context.home)?.find(&args.vm)?;
    print(&vm.record.ports.iter().map(|map| format!("{map}\n")).collect::<String>())
}
