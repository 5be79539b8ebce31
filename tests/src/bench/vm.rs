//! Starting VMs with a stopwatch.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lazyroot::vm::launch;

use super::report::{Cell, Report};
use crate::given;

/// Virtual CPUs of every measured VM.
pub const CPUS: u32 = 1;
/// Memory of every measured VM in MiB.
pub const MEMORY_MIB: u32 = 1024;

/// A VM that is not up after this long hangs: on an idle machine it takes a few seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// A process, killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `program` until a line of its standard output ends with `wanted` (a console may have something before it),
/// then until it ends by itself if it is to; how long the line took, and the last line of its standard error.
fn watch(program: &mut Command, wanted: &str, afterwards: Afterwards) -> Result<(Duration, String)> {
    let begin = Instant::now();
    let mut child = Killed(program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
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
    let mut last = String::new();
    let time = loop {
        match arrivals.recv_timeout(DEADLINE.saturating_sub(begin.elapsed())) {
            Ok((time, line)) if line.ends_with(wanted) => break time,
            Ok((_, line)) => last = line,
            Err(RecvTimeoutError::Timeout) => bail!("no '{wanted}' within {DEADLINE:?}; the last line was '{last}'"),
            Err(RecvTimeoutError::Disconnected) => {
                let mut errors = String::new();
                child.0.stderr.take().expect("piped").read_to_string(&mut errors)?;
                bail!("it ended without '{wanted}'; the last line was '{last}': {errors}");
            }
        }
    };
    let mut errors = String::new();
    if afterwards == Afterwards::Wait {
        child.0.stderr.take().expect("piped").read_to_string(&mut errors)?;
        let status = child.0.wait()?;
        ensure!(status.success(), "it ended with {status}: {errors}");
    }
    Ok((time, errors.lines().last().unwrap_or_default().to_owned()))
}

/// What happens to a process once it has said what was waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    Wait,
    Kill,
}

/// Time from the start of `program` until it says `wanted`; it is killed then.
pub fn time_to_line(program: &mut Command, wanted: &str) -> Result<Duration> {
    watch(program, wanted, Afterwards::Kill).map(|(time, _)| time)
}

/// Runs a command in an emulated VM of `image`. Time from the hypervisor's start until the line `wanted` arrived
/// here, and lazyroot's own report.
pub fn lazyroot_run(image: &str, command: &[&str], wanted: &str) -> Result<(Duration, launch::Report)> {
    let mut program = Command::new(given("LAZYROOT_TEST_BIN"));
    program.args(["run", "--report=json", "--hypervisor", "qemu:tcg"]);
    program.args(["--cpus", &CPUS.to_string(), "--memory", &MEMORY_MIB.to_string(), image, "--"]).args(command);
    let (time, report) = watch(&mut program, wanted, Afterwards::Wait)?;
    let report: launch::Report =
        serde_json::from_str(&report).with_context(|| format!("lazyroot's report is '{report}'"))?;
    Ok((time.saturating_sub(report.hypervisor_started), report))
}

/// Samples a VM; once more, with a note, if that fails. QEMU's emulation of a CPU with all features makes a
/// guest's kernel crash now and then.
pub fn twice_at_most<T>(report: &mut Report, cell: &Cell, mut sample: impl FnMut() -> Result<T>) -> Result<T> {
    sample().or_else(|error| {
        eprintln!("{}, {}: once more, because {error:#}", cell.workload, cell.system);
        report.note(cell, "a sample failed and was taken again");
        sample()
    })
}
