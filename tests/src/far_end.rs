//! The far end of an upstream: a lazyroot that serves on its standard output, and is killed.

use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::inputs::LAZYROOT;
use crate::lazyroot::Lazyroot;

/// The command that serves the images of `lazyroot` on its standard output.
pub fn command(lazyroot: &Lazyroot) -> String {
    format!("LAZYROOT_HOME={} exec {} serve --stdio", lazyroot.home().display(), LAZYROOT.path().display())
}

/// Programs of `lazyroot` that serve on standard output.
pub fn far_ends(lazyroot: &Lazyroot) -> Vec<u32> {
    let serves = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        // Not the shell, nor sshd's, that has the same words as one.
        words.next().is_some_and(|program| program.ends_with(b"lazyroot")) && words.any(|word| word == b"--stdio")
    };
    lazyroot.processes().into_iter().filter(serves).collect()
}

/// Kills the far end over and over while `work` is done; how often that was.
pub fn kill_meanwhile(far: &Lazyroot, work: impl FnOnce()) -> u32 {
    let (done, finished) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let killer = scope.spawn(move || {
            let mut kills = 0_u32;
            // Work must go on in between, however long a far end takes to start on a busy machine.
            while finished.recv_timeout(Duration::from_millis(400 + 50 * u64::from(kills))).is_err() {
                for pid in far_ends(far) {
                    // It may have ended on its own since it was found.
                    if kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).is_ok() {
                        kills += 1;
                    }
                }
            }
            kills
        });
        work();
        done.send(()).unwrap();
        killer.join().unwrap()
    })
}
