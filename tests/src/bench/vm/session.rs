//! A process whose lines of output are waited for, with the time of their arrival.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::bench::peers::Killed;

/// A line that has not come after this long never will: the slowest workload takes a minute in an emulated VM.
const DEADLINE: Duration = Duration::from_secs(300);

/// Lines that are shown of a process that ended too soon: enough for the whole of a kernel's last words.
const LAST_LINES: usize = 40;

/// A process being watched; killed when dropped.
pub struct Session {
    child: Killed,
    begin: Instant,
    arrivals: Receiver<(Duration, String)>,
}

/// The last lines of a process, newest first.
fn last_words(lines: VecDeque<String>) -> String {
    let lines = lines.into_iter().rev().map(|line| format!("  {line}\n"));
    format!("its last lines:\n{}", lines.collect::<String>())
}

impl Session {
    /// Starts it; its time counts from here.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let begin = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut child = Killed(child);
        let (lines, arrivals) = mpsc::channel();
        let output = BufReader::new(child.0.stdout.take().expect("piped"));
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if lines.send((begin.elapsed(), text)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, begin, arrivals })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Waits for a line that holds `wanted`: when it arrived, and the line from there on. A console may have something
    /// before it.
    ///
    /// # Errors
    /// If it does not come.
    pub fn until(&mut self, wanted: &str) -> Result<(Duration, String)> {
        let deadline = self.begin.elapsed() + DEADLINE;
        let mut last = VecDeque::new();
        loop {
            match self.arrivals.recv_timeout(deadline.saturating_sub(self.begin.elapsed())) {
                Ok((time, line)) => match line.find(wanted) {
                    Some(at) => return Ok((time, line[at..].to_owned())),
                    None => {
                        last.truncate(LAST_LINES - 1);
                        last.push_front(line);
                    }
                },
                Err(RecvTimeoutError::Timeout) => bail!("no '{wanted}'; {}", last_words(last)),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("it ended without '{wanted}'; {}{}", last_words(last), self.errors()?);
                }
            }
        }
    }

    /// Waits until it ends; what it said on its standard error.
    ///
    /// # Errors
    /// If it fails.
    pub fn finish(mut self) -> Result<String> {
        let errors = self.errors()?;
        let status = self.child.0.wait()?;
        ensure!(status.success(), "it ended with {status}: {errors}");
        Ok(errors)
    }

    fn errors(&mut self) -> Result<String> {
        let mut errors = String::new();
        if let Some(mut stream) = self.child.0.stderr.take() {
            stream.read_to_string(&mut errors)?;
        }
        Ok(errors)
    }
}
