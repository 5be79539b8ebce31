//! Child processes that never outlive this one, and what they said before they ended.
#![allow(unsafe_code)]

use std::path::Path;
use std::process::Command;

use crate::serve::printable;

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

/// Not to be had on this system: the hypervisor notices that its parent's sockets are gone.
#[cfg(not(target_os = "linux"))]
pub fn end_with_parent(_command: &mut Command) {}
