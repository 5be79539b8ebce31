//! Going on in the background: this very command again, in a process of its own, until it says that it is ready.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::cli::context::EXIT_OWN_ERROR;
use crate::cli::output::print;
use crate::vm::process::end_with_parent;

/// Set for the process in the background.
const BACKGROUND: &str = "LAZYROOT_IN_BACKGROUND";

/// How the line begins that the process in the background says on its standard output once it is ready.
const READY: &str = "ready ";

/// Whether this is the process in the background.
pub fn is_here() -> bool {
    std::env::var_os(BACKGROUND).is_some()
}

/// Starts the process in the background and waits until it is ready; prints what it then says, or, with its own exit
/// status, what kept it.
///
/// # Errors
/// If it cannot be started.
pub fn start() -> Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(BACKGROUND, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Until it is ready: Ctrl-C here must not leave it trying.
    end_with_parent(&mut command);
    let mut child = command.spawn().context("cannot start the process in the background")?;
    let mut errors = child.stderr.take().expect("piped");
    // As it comes: a boot may have something to say before it is done, or -v much.
    let errors = std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::stderr()));
    let mut ready = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready)?;
    if let Some(text) = ready.strip_prefix(READY) {
        return if text.trim().is_empty() { Ok(ExitCode::SUCCESS) } else { print(text) };
    }
    let status = child.wait()?;
    let _ = errors.join();
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(EXIT_OWN_ERROR)))
}

/// In the background: a session of its own, for the terminal's Ctrl-C and hang-up are not for it.
pub fn enter() {
    // Fails only for the leader of a session, which has its own already.
    let _ = rustix::process::setsid();
}

/// In the background: says `text` to whoever started us, and lets go of them: of their folder, and first of their pipes,
/// which break as soon as they have the word. Output goes to `log`.
///
/// # Errors
/// If nobody waits any more, or that cannot be done.
pub fn ready(text: &str, log: &File) -> Result<()> {
    // From here on we outlive whoever started us. They are waiting for the word: if they are gone, so are we.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(None)?;
    std::env::set_current_dir("/")?;
    let mut waiting = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdout(log)?;
    rustix::stdio::dup2_stderr(log)?;
    writeln!(waiting, "{READY}{text}").context("nobody waits any more")
}
