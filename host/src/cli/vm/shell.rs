//! `lazyroot shell`: a shell in a running VM.

use std::process::ExitCode;

use anyhow::{Result, bail};
use lazyroot_proto::exec::ExecError;

use crate::cli::context::Context;
use crate::cli::vm::find::find_running;
use crate::cli::vm::process::{give_terminal, request, run_in};
use crate::vm::guest::exec;

/// Open a shell in a running VM
#[derive(clap::Args)]
pub struct ShellArgs {
    /// User to run it as: name or number, with an optional :group
    #[arg(short, long)]
    user: Option<String>,
    /// Name or id of the VM
    vm: String,
}

/// Shells that are tried, in this order: the image is anybody's.
const SHELLS: &[&[&str]] = &[&["/bin/bash", "-l"], &["/bin/sh", "-l"], &["/bin/busybox", "sh", "-l"]];

/// Opens a shell: the first that the image has.
pub fn shell(args: &ShellArgs, context: &Context) -> Result<ExitCode> {
    let vm = find_running(context, &args.vm)?;
    for shell in SHELLS {
        let argv = shell.iter().map(|word| word.as_bytes().to_vec()).collect();
        let mut request = request(&vm, argv, args.user.clone());
        // Without a terminal it reads a script.
        if let Some(window) = exec::window() {
            give_terminal(&mut request, window);
        }
        match run_in(&vm, request, exec::Input::Ours)? {
            exec::Outcome::NotStarted(ExecError::NotFound, _) => (),
            outcome => return Ok(outcome.report().into()),
        }
    }
    let names: Vec<_> = SHELLS.iter().map(|shell| shell[0]).collect();
    bail!("the image has no shell ({}): 'lazyroot exec' runs what it has", names.join(", "))
}
