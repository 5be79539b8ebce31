//! From the start of the hypervisor to the first line of a command's output: an image that streams from the store
//! against the same tree on a ready-made disk.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::peer::Peer;
use super::report::{Cell, Report};
use super::vm;
use crate::{given, kernel_deb, rootfs};

/// The image's name in the benchmark's store.
pub const IMAGE: &str = "boot";

const LAZYROOT: &str = "lazyroot";
const PEER: &str = "erofs on virtio-blk";

/// Samples of every command on every system, all of them with the guest's caches cold.
const SAMPLES: usize = 7;

/// What the Python program prints: nothing that a kernel's message ends with.
const PYTHON_SAYS: &str = "python is up";

/// A command to boot into.
struct Workload {
    name: &'static str,
    command: &'static [&'static str],
}

const WORKLOADS: &[Workload] = &[
    Workload { name: "boot to cat /etc/os-release", command: &["cat", "/etc/os-release"] },
    Workload {
        name: "boot to python3 -c 'import json, ssl'",
        command: &["python3", "-u", "-c", "import json, ssl; print('python is up')"],
    },
];

/// The first line of a workload's output.
fn first_line(workload: &Workload) -> Result<String> {
    match workload.command {
        ["cat", path] => {
            let text = std::fs::read_to_string(rootfs().join(path.trim_start_matches('/')))?;
            Ok(text.lines().next().context("an empty file")?.to_owned())
        }
        _ => Ok(PYTHON_SAYS.into()),
    }
}

/// Imports the kernel and the image: neither takes long when they are there.
///
/// # Errors
/// If they cannot be imported.
pub fn import() -> Result<()> {
    let (kernel, root) = (kernel_deb(), rootfs());
    lazyroot(&["kernel", "import", &kernel.to_string_lossy()])?;
    lazyroot(&["image", "import", &format!("dir:{}", root.display()), "--name", IMAGE])
}

/// Runs lazyroot to its end.
///
/// # Errors
/// If it fails.
pub fn lazyroot(arguments: &[&str]) -> Result<()> {
    let output = Command::new(given("LAZYROOT_TEST_BIN")).args(arguments).output()?;
    ensure!(output.status.success(), "lazyroot {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Boots everything, in an order that differs from round to round.
///
/// # Errors
/// If anything cannot be set up, or a VM fails twice.
pub fn run(work: &Path, report: &mut Report) -> Result<()> {
    import()?;
    let peer = Peer::make(work)?;
    for workload in WORKLOADS {
        report.compare(workload.name, PEER);
        report.note(&cell(workload, PEER), &peer.about);
    }
    for round in 0..SAMPLES {
        for (number, workload) in WORKLOADS.iter().enumerate() {
            let mut systems = [LAZYROOT, PEER];
            if (round + number) % 2 == 1 {
                systems.reverse();
            }
            for system in systems {
                let cell = cell(workload, system);
                let wanted = first_line(workload)?;
                let (time, fetched) = vm::twice_at_most(report, &cell, || match system {
                    PEER => Ok((peer.boot(workload.command, &wanted)?, None)),
                    _ => {
                        let (time, said) = vm::lazyroot_run(IMAGE, workload.command, &wanted)?;
                        Ok((time, Some((said.served.bytes, said.served.requests))))
                    }
                })?;
                report.add(cell, time.as_secs_f64(), fetched);
            }
        }
        eprintln!("boot: round {} of {SAMPLES} done", round + 1);
    }
    Ok(())
}

fn cell(workload: &Workload, system: &str) -> Cell {
    Cell { workload: workload.name.into(), cache: "cold", system: system.into() }
}
