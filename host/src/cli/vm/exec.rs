//! `lazyroot exec` and `shell`: programs in a running VM.

use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use lazyroot_proto::exec::{Exec, ExecError, TerminalSize};

use crate::cli::context::{Context, runtime};
use crate::vm::guest::exec;
use crate::vm::instance::control;
use crate::vm::instance::{State, VmEntry, Vms};

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

/// How a command is started, whatever it is started in.
#[derive(clap::Args)]
pub struct ProcessArgs {
    /// Set a variable in the command's environment; NAME alone takes it from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Folder to start the command in
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run the command as: name or number, with an optional :group
    #[arg(short, long)]
    pub user: Option<String>,
}

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

/// The VM that `name` means, which must be alive.
pub fn find_running(context: &Context, name: &str) -> Result<VmEntry> {
    let vm = Vms::open(&context.home)?.find(name)?;
    ensure!(vm.state == State::Alive, "VM '{0}' has ended: 'lazyroot logs {0}' may say why", vm.record.name);
    Ok(vm)
}

/// A program as the image wants programs to be run.
fn request(vm: &VmEntry, argv: Vec<Vec<u8>>, user: Option<String>) -> Exec {
    let defaults = &vm.record.defaults;
    Exec {
        argv,
        env: defaults.env.iter().map(|variable| variable.clone().into_bytes()).collect(),
        workdir: defaults.workdir.clone().into(),
        user: user.unwrap_or_else(|| defaults.user.clone()).into(),
        terminal: None,
    }
}

/// Runs a program in a VM on our standard streams.
fn run_in(vm: &VmEntry, request: Exec, input: exec::Input) -> Result<exec::Outcome> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let stream = tokio::select! {
            stream = control::open_stream(&vm.dir) => stream?,
            status = exec::ended_by_signal() => return Ok(exec::Outcome::Ended(status?)),
        };
        exec::run(stream, request, input, || ()).await
    });
    // A read of our standard input may still be under way: it must not hold us up.
    runtime.shutdown_background();
    outcome.with_context(|| format!("VM '{}'", vm.record.name))
}

/// The variables that `--env` means: `NAME=VALUE`, or NAME with its value here, if it has one.
pub fn variables(given: &[String]) -> impl Iterator<Item = Vec<u8>> {
    given.iter().filter_map(|variable| match (variable.contains('='), std::env::var(variable)) {
        (true, _) => Some(variable.clone().into_bytes()),
        (false, Ok(value)) => Some(format!("{variable}={value}").into_bytes()),
        (false, Err(_)) => None,
    })
}

/// A terminal like ours.
pub fn give_terminal(request: &mut Exec, window: TerminalSize) {
    if let Ok(kind) = std::env::var("TERM") {
        request.env.push(format!("TERM={kind}").into_bytes());
    }
    request.terminal = Some(window);
}
