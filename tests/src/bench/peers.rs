//! Programs that lazyroot is compared with, of one Debian release whatever this machine runs: they lie in a tree of
//! their own and are started through that tree's dynamic loader.

use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};

use super::report::Fetched;
use crate::inputs::BENCH_PEERS;

/// A command line of the peers' program at `path`, such as `usr/bin/qemu-nbd`.
///
/// # Errors
/// If it is not there.
pub fn program(path: &str) -> Result<Command> {
    let peers = BENCH_PEERS.path();
    let program = peers.join(path);
    anyhow::ensure!(program.exists(), "there is no {}", program.display());
    let libraries = peers.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let loader = std::fs::read_dir(&libraries)?.flatten().map(|entry| entry.path());
    let is_loader = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("ld-linux-"))
    };
    let loader = loader.into_iter().find(is_loader).context("the peers' tree has no dynamic loader")?;
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(libraries).arg(program);
    Ok(command)
}

/// The first line of what a program says of its version.
pub fn version(command: &mut Command) -> String {
    let Ok(output) = command.arg("--version").output() else { return "unknown version".into() };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| line.contains(|character: char| character.is_ascii_digit()));
    // Programs name themselves by the path that the loader started them with.
    line.map_or("unknown version", |line| line.rsplit_once('/').map_or(line, |(_, name)| name)).trim().to_owned()
}

/// A process, killed when dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processor time that a process, all its threads together, has used, in seconds.
pub fn processor_time(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Processor time that everything on this machine has used since it started, in seconds.
///
/// # Errors
/// If the kernel does not say.
pub fn processor_time_of_all() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    // "cpu", then user, nice, system, idle, iowait, irq, softirq (proc_stat(5)).
    let ticks: Vec<f64> = stat.split_ascii_whitespace().skip(1).take(7).filter_map(|word| word.parse().ok()).collect();
    let [user, nice, system, _, _, irq, softirq] = ticks[..] else { bail!("/proc/stat begins with {ticks:?}") };
    Ok((user + nice + system + irq + softirq) / rustix::param::clock_ticks_per_second() as f64)
}

/// Bytes that a process has read, and in how many calls.
pub fn reads(pid: u32) -> Option<Fetched> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let field =
        |name: &str| io.lines().find_map(|line| line.strip_prefix(name)).and_then(|word| word.trim().parse().ok());
    Some((field("rchar:")?, field("syscr:")?))
}
