//! A program in a VM that is up: what `lazyroot exec` takes, and what of it the guest itself takes to start and end a
//! program, which no host can save.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::inputs::{IMAGE, Inputs, lazyroot};
use super::plan::Plan;
use super::report::{Cell, Report, cache};
use crate::lazyroot::program;

/// The name of this part.
pub const PART: &str = "exec";

const WORKLOAD: &str = "one program";
const EXEC: &str = "lazyroot exec VM true";
const GUEST: &str = "fork, exec and wait in the guest";

/// The VM's name in the benchmark's home.
const VM: &str = "bench-exec";

/// Programs a sample: a single one is too short to be measured.
const TIMES: u32 = 20;

/// The guest's own share, in seconds.
const SCRIPT: &str = "
import os, time
begin = time.monotonic()
for _ in range(20):
    pid = os.fork()
    if pid == 0: os.execv('/usr/bin/true', ['true'])
    os.waitpid(pid, 0)
print((time.monotonic() - begin) / 20)";

/// Removed when dropped.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        let _ = lazyroot(&["rm", "--force", VM]);
    }
}

/// Runs programs in one VM, from the host and from within, in turn.
///
/// # Errors
/// If the VM does not come up, or a program fails.
pub fn run(_inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    report.compare(PART, GUEST);
    drop(Running);
    lazyroot(&["run", "-d", "--name", VM, IMAGE, "--", "sleep", "infinity"])?;
    let _running = Running;
    let exec = || lazyroot(&["exec", VM, "true"]);
    let inside = || output(&["exec", VM, "python3", "-c", SCRIPT]);
    // What they read is in the guest's memory after this.
    exec()?;
    inside()?;
    for _ in 0..plan.samples {
        let begin = Instant::now();
        for _ in 0..TIMES {
            exec()?;
        }
        report.add(&cell(EXEC), begin.elapsed().as_secs_f64() / f64::from(TIMES), None);
        let said = inside()?;
        let seconds = said.trim().parse().with_context(|| format!("the guest said '{said}'"))?;
        report.add(&cell(GUEST), seconds, None);
    }
    Ok(())
}

fn output(arguments: &[&str]) -> Result<String> {
    let output = program().args(arguments).output()?;
    ensure!(output.status.success(), "lazyroot {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn cell(system: &str) -> Cell {
    Cell::new(PART, WORKLOAD, cache::WARM, system)
}
