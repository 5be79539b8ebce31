//! `lazyroot logs`: what a VM said.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::timings;
use crate::vm::hypervisor::console;
use crate::vm::instance::control;
use crate::vm::instance::{State, Vms};
use crate::vm::launch;
use crate::vm::log;

/// Show what a VM said: what its command wrote, or its console
///
/// Of each log the newest 1 to 2 MiB are kept.
#[derive(clap::Args)]
pub struct LogsArgs {
    /// Go on with what is added, until the VM ends
    #[arg(short, long, conflicts_with = "timings")]
    follow: bool,
    /// The console, also of a VM with a command
    #[arg(long)]
    console: bool,
    /// What lazyroot itself, its agent and the hypervisor had to say
    #[arg(long, conflicts_with = "console")]
    agent: bool,
    /// How long each step of the boot took
    #[arg(long, conflicts_with_all = ["console", "agent"])]
    timings: bool,
    /// Name or id of the VM
    vm: String,
}

/// Where a VM in the background writes what it has to say.
pub const OWN_LOG: &str = "lazyroot.log";

/// Shows a log.
pub fn run(args: &LogsArgs, context: &Context) -> Result<ExitCode> {
    let vms = Vms::open(&context.home)?;
    let vm = vms.find(&args.vm)?;
    if args.timings {
        let timings = match &vm.state {
            State::Alive => runtime()?.block_on(control::status(&vm.dir))?.timings,
            State::Ended(end) => end.timings,
            State::Stopped => anyhow::bail!("VM '{}' was not started since the host was", vm.record.name),
            State::Lost => anyhow::bail!("nobody knows: the lazyroot of VM '{}' was killed", vm.record.name),
        };
        return print(&timings::lines(&timings));
    }
    let name = match (args.agent, args.console || vm.record.command.is_empty()) {
        (true, _) => OWN_LOG,
        (_, true) => console::LOG,
        _ => launch::OUTPUT_LOG,
    };
    let path = vm.dir.join(name);
    let mut stdout = std::io::stdout().lock();
    let show = |data: &[u8]| stdout.write_all(data).and_then(|()| stdout.flush());
    let over = || !args.follow || !vm.is_alive();
    match log::follow(&path, show, over) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("cannot show {}", path.display()))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
