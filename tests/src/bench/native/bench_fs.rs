//! The benchmark's own file systems (src/bin/bench-fs.rs).

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::lazyroot::{Lazy, Serving};
use super::mounted::Served;
use super::{Inputs, Mounted, System};
use crate::bench::inputs::IMAGE;
use crate::bench::peers::Killed;
use crate::inputs::BENCH_FS;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(BENCH_FS.path());
    command.args(arguments);
    command
}

struct Memory;

/// The floor of any FUSE file system.
pub fn memory(_: &Inputs) -> Result<Box<dyn System>> {
    Ok(Box::new(Memory))
}

impl System for Memory {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        Ok(Box::new(Served::start(command(&["mount", "memory", &at.to_string_lossy(), IMAGE]), at)?))
    }

    fn reads_disk(&self) -> bool {
        false
    }

    fn about(&self) -> String {
        "our overlay on a FUSE layer that has all content in memory: no request leaves it, nothing is verified".into()
    }
}

struct Socket {
    address: String,
    _content: Killed,
}

/// The floor of any FUSE file system that asks another process.
pub fn socket(inputs: &Inputs) -> Result<Box<dyn System>> {
    let path = inputs.fresh("content.sock")?;
    let address = path.to_string_lossy().into_owned();
    let mut content = Killed(command(&["content", &address, IMAGE]).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    BufReader::new(content.0.stdout.take().context("piped")?).read_line(&mut line)?;
    ensure!(line.trim() == "ready", "bench-fs content failed");
    Ok(Box::new(Socket { address, _content: content }))
}

impl System for Socket {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        let source = format!("socket={}", self.address);
        Ok(Box::new(Served::start(command(&["mount", &source, &at.to_string_lossy(), IMAGE]), at)?))
    }

    fn reads_disk(&self) -> bool {
        false
    }

    fn about(&self) -> String {
        "the same, every read being one round trip on a unix socket to a process with all content in memory".into()
    }
}

struct Naive(Serving);

/// lazyroot's server and proofs, asked naively.
pub fn naive(inputs: &Inputs) -> Result<Box<dyn System>> {
    Ok(Box::new(Naive(Serving::new(inputs)?)))
}

impl System for Naive {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        let server = self.0.start(None)?;
        let source = server.endpoint.to_string().replacen("unix:", "naive=", 1);
        let _mount = Served::start(command(&["mount", &source, &at.to_string_lossy(), IMAGE]), at)?;
        Ok(Box::new(Lazy { _mount, server }))
    }

    fn about(&self) -> String {
        "lazyroot's server and proofs; one request at a time, nothing ahead of need, nothing kept".into()
    }
}
