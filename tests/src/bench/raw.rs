//! What nothing can be faster than, and what lazyroot costs beside time: a unix socket's round trip and throughput, the
//! hashing that verification is, and what a server keeps for a VM that is idle.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lazyroot_guest::link::{Address, Link, REQUEST_DEADLINE};
use lazyroot_proto::verity;

use super::inputs::Inputs;
use super::peers::Killed;
use super::plan::Plan;
use super::report::{Cell, Report, Unit, cache};
use crate::lazyroot::program;

/// The name of this part.
pub const PART: &str = "raw";

/// A request as small as the data plane's.
const REQUEST: usize = 64;
/// Answers: one block, and as much as FUSE reads at a time at most.
const SMALL: usize = 4 << 10;
const LARGE: usize = 1 << 20;
/// Round trips of one sample.
const SMALL_TRIPS: u32 = 20_000;
const LARGE_TRIPS: u32 = 2_000;

/// Idle sessions of one sample.
const IDLE_SESSIONS: usize = 256;

/// Objects of this many bytes or more are not what cold tar reads: only the large file is.
const LARGE_FILE: u64 = 128 << 20;

/// Takes the samples.
///
/// # Errors
/// If anything fails.
pub fn run(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    let cell = |workload: &str, system: &str| Cell::new(PART, workload, cache::WARM, system);
    for _ in 0..plan.samples {
        let seconds = round_trips(SMALL, SMALL_TRIPS)?;
        report.add(&cell("64 B request, 4 KiB reply", "unix socket"), seconds / f64::from(SMALL_TRIPS), None);
        let seconds = round_trips(LARGE, LARGE_TRIPS)?;
        let speed = f64::from(LARGE_TRIPS) * LARGE as f64 / seconds;
        report.add_in(Unit::BytesPerSecond, &cell("64 B request, 1 MiB reply", "unix socket"), speed);
    }
    cold_tar(inputs, plan, report)?;
    let idle = cell("server's memory per idle VM", "lazyroot serve");
    for _ in 0..plan.samples {
        report.add_in(Unit::Bytes, &idle, idle_memory(inputs)?);
    }
    report
        .note(&idle, &format!("growth of its resident memory over {IDLE_SESSIONS} sessions that fetched the manifest"));
    Ok(())
}

/// Seconds that so many requests and replies take between two threads.
fn round_trips(reply: usize, trips: u32) -> Result<f64> {
    let (mut asking, mut answering) = UnixStream::pair()?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut request, reply) = ([0; REQUEST], vec![0; reply]);
        for _ in 0..trips {
            answering.read_exact(&mut request)?;
            answering.write_all(&reply)?;
        }
        Ok(())
    });
    let mut buffer = vec![0; reply];
    let begin = Instant::now();
    for _ in 0..trips {
        asking.write_all(&[0; REQUEST])?;
        asking.read_exact(&mut buffer)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    server.join().expect("the answering thread does not panic")?;
    Ok(seconds)
}

/// What any data plane has to do for a cold tar that a local mount has not: hash exactly the objects that it reads, as the
/// guest does, and put as many bytes into new memory. One thread each.
fn cold_tar(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    let objects = inputs.store.path().join("objects");
    let index = inputs.image.index.load()?;
    let wanted = index.entries().iter().filter(|(_, size)| *size < LARGE_FILE);
    let contents =
        wanted.map(|(id, _)| Ok((*id, fs::read(objects.join(id.object_path()))?))).collect::<Result<Vec<_>>>()?;
    let bytes: usize = contents.iter().map(|(_, content)| content.len()).sum();
    let hashing = Cell::new(PART, "hashing what cold tar reads, one thread", cache::WARM, "lazyroot-proto");
    let filling = Cell::new(PART, "new memory for what cold tar reads, one thread", cache::WARM, "memfd");
    for _ in 0..plan.samples {
        let begin = Instant::now();
        for (id, content) in &contents {
            ensure!(verity::digest(id.algorithm(), content) == *id, "object {id} in the store is damaged");
        }
        report.add(&hashing, begin.elapsed().as_secs_f64(), None);
        let mut memory = fs::File::from(rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC)?);
        let begin = Instant::now();
        for (_, content) in &contents {
            memory.write_all(content)?;
        }
        report.add(&filling, begin.elapsed().as_secs_f64(), None);
    }
    for cell in [hashing, filling] {
        report.note(&cell, &format!("{} objects, {:.0} MB", contents.len(), bytes as f64 / 1e6));
    }
    Ok(())
}

/// Bytes of memory that a server grows by for one more session that is idle.
fn idle_memory(inputs: &Inputs) -> Result<f64> {
    let socket = inputs.fresh("idle.sock")?;
    let mut command = program();
    command.args(["serve", "--listen", &format!("unix:{}", socket.display())]).stdout(Stdio::piped());
    let mut server = Killed(command.spawn()?);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().context("piped")?).read_line(&mut line)?;
    let connect = || -> Result<Link> {
        let link = Link::connect(Address::Unix(socket.clone()), inputs.image.id, REQUEST_DEADLINE)?;
        link.manifest(|_| -> Result<()> { Ok(()) })?;
        Ok(link)
    };
    // What the first sessions cost once is no cost of a session.
    let first = (0..IDLE_SESSIONS / 8).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    let before = resident(server.0.id())?;
    let sessions = (0..IDLE_SESSIONS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    let after = resident(server.0.id())?;
    drop((first, sessions));
    Ok((after.saturating_sub(before)) as f64 / IDLE_SESSIONS as f64)
}

/// Resident memory of a process in bytes.
pub(super) fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
