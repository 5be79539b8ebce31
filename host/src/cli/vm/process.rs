//! How a program in a guest is started: its environment, folder, user and terminal. Shared by `run`, `exec` and `shell`.

use anyhow::{Context as _, Result};
use lazyroot_proto::exec::{Exec, TerminalSize};

use crate::cli::context::runtime;
use crate::vm::guest::exec;
use crate::vm::instance::VmEntry;
use crate::vm::instance::control;

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

/// A program as the image wants programs to be run.
pub fn request(vm: &VmEntry, argv: Vec<Vec<u8>>, user: Option<String>) -> Exec {
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
pub fn run_in(vm: &VmEntry, request: Exec, input: exec::Input) -> Result<exec::Outcome> {
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
