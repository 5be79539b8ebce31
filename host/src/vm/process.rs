//! Child processes that never outlive this one, and what they said before they ended.
#![allow(unsafe_code)]

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::text::printable;

/// The last line of a log, or what stands for it.
pub fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| "it said nothing".to_owned(), |line| printable(line.trim()))
}

/// Makes the kernel end the command's process when the thread that starts it ends. Start it from the main
/// thread: that one ends with the process, be it by `kill -9`.
#[cfg(target_os = "linux")]
pub fn end_with_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    let set_death_signal = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may be gone already, in which case no signal will come.
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(rustix::io::Errno::CHILD.into()),
        }
    };
    // SAFETY: between fork and exec the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(set_death_signal) };
}

/// Not to be had on this system: see [`leashed`].
#[cfg(not(target_os = "linux"))]
pub fn end_with_parent(_command: &mut Command) {}

/// Holds a process: when this is gone without being dropped, because our process was killed, so is the other one.
pub struct Leash {
    ours: Option<PipeWriter>,
    /// For the guard, which inherits it.
    _guards: PipeReader,
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.ours.take() {
            // Fails only if the guard is gone with its process.
            let _ = pipe.write_all(b"\n");
        }
    }
}

/// A command for `program` that ends with this process, however this one ends, on every system. The leash must be kept
/// as long as the process is to run.
///
/// A shell starts a guard, and becomes the program. The guard waits at a pipe to us: a line means that all is well, its
/// end without one that we were killed.
///
/// # Errors
/// If there can be no pipe.
pub fn leashed(program: &Path) -> Result<(tokio::process::Command, Leash)> {
    const GUARD: &str = r#"(read -r _ <"/dev/fd/$0" || kill -9 $$) & exec "$@""#;
    let (guards, ours) = std::io::pipe().context("cannot make a pipe")?;
    // Every child started from now on has this end; only the other one's end is a sign.
    rustix::io::fcntl_setfd(&guards, rustix::io::FdFlags::empty()).context("cannot hand on a pipe")?;
    let mut command = tokio::process::Command::new("/bin/sh");
    command.arg("-c").arg(GUARD).arg(guards.as_raw_fd().to_string()).arg(program);
    Ok((command, Leash { ours: Some(ours), _guards: guards }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_leashed_process_ends_when_its_holder_is_killed_and_not_before() {
        let (mut command, mut leash) = leashed(Path::new("/bin/sleep")).unwrap();
        let mut child = command.arg("1000").kill_on_drop(true).spawn().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(300), child.wait()).await;
        assert!(early.is_err(), "it runs as long as we do: {early:?}");
        // What the kernel does when we are killed: the pipe ends without a word.
        drop(leash.ours.take());
        let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
        assert_eq!(ended.expect("its guard sees to it").unwrap().signal(), Some(9));
    }

    #[tokio::test]
    async fn a_leash_that_is_dropped_ends_its_guard_only() {
        let (mut command, leash) = leashed(Path::new("/bin/sleep")).unwrap();
        let mut child = command.arg("1").kill_on_drop(true).spawn().unwrap();
        drop(leash);
        assert!(child.wait().await.unwrap().success());
    }
}
