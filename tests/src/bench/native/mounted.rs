//! Mounts that a process of ours serves.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

use super::Mounted;

/// How long a program may take to mount or to end; loading the tree into memory takes a second.
const DEADLINE: Duration = Duration::from_secs(60);

/// A program that mounts in the foreground and ends when it is unmounted.
pub struct Served {
    child: Child,
    at: PathBuf,
}

impl Served {
    /// Starts `command`; returns when something is mounted at `at`.
    ///
    /// # Errors
    /// If nothing is within [`DEADLINE`], or the program ends.
    pub fn start(mut command: Command, at: &Path) -> Result<Self> {
        let outside = fs::metadata(at)?.dev();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let mut served = Self { child, at: at.to_owned() };
        let begin = Instant::now();
        // A mount that does not answer yet is none.
        while fs::metadata(at).map_or(outside, |meta| meta.dev()) == outside {
            if let Some(status) = served.child.try_wait()? {
                let mut words = String::new();
                std::io::Read::read_to_string(served.child.stderr.as_mut().context("piped")?, &mut words)?;
                bail!("{command:?} ended with {status}: {}", words.trim());
            }
            if begin.elapsed() > DEADLINE {
                bail!("{command:?} mounted nothing");
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(served)
    }
}

impl Mounted for Served {}

impl Drop for Served {
    fn drop(&mut self) {
        // Busy for a moment after the last program there has ended, or not mounted at all.
        for _ in 0..50 {
            if unmount(&self.at, UnmountFlags::empty()) != Err(rustix::io::Errno::BUSY) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let begin = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if begin.elapsed() > DEADLINE {
                // Fails only if it has ended.
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}
