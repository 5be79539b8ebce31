//! `lazyroot wait`: until VMs have ended.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::cli::context::Context;
use crate::cli::output::print;
use crate::vm::instance::{End, State, Vms};

/// Wait until VMs have ended, and print the exit status of each
#[derive(clap::Args)]
pub struct WaitArgs {
    /// Names or ids of the VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<String>,
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
