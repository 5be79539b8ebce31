//! The end of a guest that is asked to end: by its init where there is one, and in order where there is none.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Dir, Mode as FileMode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::RebootCommand;

use crate::agent::mode::Mode;
use crate::sys;

/// How long programs have between SIGTERM and SIGKILL where there is no init to be more patient.
const GRACE: Duration = Duration::from_secs(5);

/// Pause between two looks at who is left.
const EVERY: Duration = Duration::from_millis(50);

/// How often an init is asked: one that has just started may not listen yet, and hears no signal twice.
const AGAIN: Duration = Duration::from_secs(2);

/// Shuts the machine down; never returns. An init may take its time: the host ends a VM for which it takes too long.
pub fn gently(root: &OwnedFd, mode: Mode) -> ! {
    while mode == Mode::Init && ask_init(root).is_ok() {
        thread::sleep(AGAIN);
    }
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, EVERY)] {
        let deadline = Instant::now() + patience;
        for pid in programs(root).unwrap_or_default() {
            // Fails if it has ended just now.
            let _ = kill_process(pid, signal);
        }
        while Instant::now() < deadline && !programs(root).unwrap_or_default().is_empty() {
            thread::sleep(EVERY);
        }
    }
    power_off()
}

/// Syncs and powers the machine off.
pub fn power_off() -> ! {
    rustix::fs::sync();
    // Fails only without the privilege, which PID 1 and its daemon have.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

/// Tells the image's init in its own way.
fn ask_init(root: &OwnedFd) -> io::Result<()> {
    let program = rustix::fs::readlinkat(root, "proc/1/exe", Vec::new())?;
    match program.to_bytes().rsplit(|byte| *byte == b'/').next() {
        Some(b"systemd") => sys::ask_systemd_to_power_off(),
        // BusyBox init powers off at SIGUSR2 (its init/halt.c).
        Some(b"busybox") => Ok(kill_process(Pid::INIT, Signal::USR2)?),
        // sysvinit listens to a pipe, others to a socket: none to a signal that all would understand.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn open(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(root, path, flags | OFlags::CLOEXEC, FileMode::empty())?)
}

/// All programs but PID 1 and this one. The kernel's own threads have no executable.
fn programs(root: &OwnedFd) -> io::Result<Vec<Pid>> {
    let proc = open(root, "proc", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut pids = Vec::new();
    for entry in Dir::read_from(&proc)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let program = format!("{}/exe", pid.as_raw_nonzero());
        let ours = pid == Pid::INIT || pid == rustix::process::getpid();
        if !ours && rustix::fs::readlinkat(&proc, program, Vec::new()).is_ok() {
            pids.push(pid);
        }
    }
    Ok(pids)
}
