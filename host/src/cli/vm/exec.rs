//! `lazyroot exec`: a program in a running VM.

use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::context::Context;
use crate::cli::vm::find::find_running;
use crate::cli::vm::process::{ProcessArgs, give_terminal, request, run_in, variables};
use crate::vm::guest::exec;

/// Run a command in a running VM
///
/// Exits with the command's status (125: lazyroot failed, 126: the command cannot be run, 127: there is no such
/// command, 128+N: signal N ended it).
#[derive(clap::Args)]
pub struct ExecArgs {
    /// Pass standard input on to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    #[command(flatten)]
    process: ProcessArgs,
    /// Name or id of the VM
    vm: String,
    /// Command to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<std::ffi::OsString>,
}

/// Runs a command.
pub fn run(args: ExecArgs, context: &Context) -> Result<ExitCode> {
    let vm = find_running(context, &args.vm)?;
    let mut request = request(&vm, args.command.into_iter().map(OsStringExt::into_vec).collect(), args.process.user);
    if let Some(workdir) = args.process.workdir {
        request.workdir = workdir.into();
    }
    request.env.extend(variables(&args.process.env));
    let input = if args.interactive || args.tty { exec::Input::Ours } else { exec::Input::Nothing };
    if args.tty {
        give_terminal(&mut request, exec::window().context("-t needs a terminal on standard input")?);
    }
    Ok(run_in(&vm, request, input)?.report().into())
}
