//! Starting a daemon that makes a socket for the hypervisor to connect to.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::vm::process::{end_with_parent, last_words};

/// How long a daemon may take to make its socket.
const SOCKET_DEADLINE: Duration = Duration::from_secs(10);

/// Pause between two looks for the socket: it is there within a few milliseconds.
const POLL: Duration = Duration::from_millis(2);

/// A daemon's socket and log, and what to call it in errors.
pub struct Daemon<'a> {
    /// Its program's name.
    pub name: &'static str,
    /// Its name with what it works for.
    pub about: String,
    /// The socket that it makes.
    pub socket: &'a Path,
    /// Where its standard error goes.
    pub log: &'a Path,
}

impl Daemon<'_> {
    /// Starts `command`, whose errors go to `stderr`, and waits for the socket. The process ends with this one.
    ///
    /// # Errors
    /// If it does not start, or makes no socket; with its own words.
    pub async fn start(&self, mut command: Command, stderr: File) -> Result<Child> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).kill_on_drop(true);
        command.process_group(0);
        end_with_parent(command.as_std_mut());
        let program = command.as_std().get_program().to_owned();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let deadline = Instant::now() + SOCKET_DEADLINE;
        while !self.socket.exists() {
            if let Some(status) = child.try_wait()? {
                bail!("{} ended with {status}: {}", self.about, last_words(self.log));
            }
            if Instant::now() > deadline {
                bail!("{} made no socket within {} s", self.name, SOCKET_DEADLINE.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(child)
    }
}
