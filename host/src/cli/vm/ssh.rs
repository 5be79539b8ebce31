//! `lazyroot ssh`: OpenSSH into a running VM.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::context::{Context, runtime};
use crate::cli::output::print;
use crate::cli::vm::find::find_running;
use crate::vm::guest::ssh::{self, Keys};

/// Log in to a running VM with OpenSSH, over no network, with a key of the VM's own
///
/// The image must have sshd; it need not run. Without one there are 'lazyroot shell' and 'lazyroot exec'.
#[derive(clap::Args)]
pub struct SshArgs {
    /// User to log in as
    #[arg(short, long, default_value = "root")]
    login: String,
    /// Print a configuration for ssh, scp, rsync and the like instead: a host by the VM's name
    #[arg(long)]
    ssh_config: bool,
    /// Name or id of the VM
    vm: String,
    /// Command to run, and its arguments; a shell if there is none
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Carry one ssh connection to a VM on standard input and output
#[derive(clap::Args)]
pub struct SshProxyArgs {
    /// The VM's folder
    dir: PathBuf,
}

/// Logs in.
pub fn run(args: &SshArgs, context: &Context) -> Result<ExitCode> {
    let vm = find_running(context, &args.vm)?;
    if args.ssh_config {
        return print(&Keys::of(&vm.dir)?.client_config(&vm)?);
    }
    let mut command = ssh::client(&vm)?;
    command.arg("-l").arg(&args.login).arg(&vm.record.name).args(&args.command);
    // Comes back only if there is no such program.
    Err(command.exec()).context(
        "ssh is not installed: 'apt-get install openssh-client' on Debian, 'dnf install openssh-clients' on Fedora",
    )
}

/// Carries a connection.
pub fn proxy(args: &SshProxyArgs) -> Result<ExitCode> {
    let runtime = runtime()?;
    let status = runtime.block_on(ssh::proxy(&args.dir));
    // A read of our standard input may still be under way: it must not hold us up.
    runtime.shutdown_background();
    Ok(status?.into())
}
