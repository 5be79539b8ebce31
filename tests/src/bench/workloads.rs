//! What is done to a mounted tree. Each runs to its end and checks that it did what it should.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The large file that the benchmark adds to the image, relative to its root.
pub const LARGE_FILE: &str = "bench/large";
/// Its size in bytes.
pub const LARGE_SIZE: u64 = 128 << 20;
/// Random reads of one sample.
const RANDOM_READS: u64 = 4000;

/// A workload: its name in the report, and what it does to the tree at a path.
pub struct Workload {
    /// For the report.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&Path) -> Result<()>,
}

/// All of them.
pub const ALL: &[Workload] = &[
    Workload { name: "tar cf - / \\| cat", run: tar },
    Workload { name: "find / -printf %s", run: find },
    Workload { name: "python imports", run: python },
    Workload { name: "sequential 128 MiB", run: sequential },
    Workload { name: "random 4 KiB x 4000", run: random },
];

fn shell(tree: &Path, script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-ec", script, "sh"]).arg(tree).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "'{script}' failed on {}", tree.display());
    Ok(())
}

fn tar(tree: &Path) -> Result<()> {
    // Without the pipe tar sees /dev/null and reads nothing.
    shell(tree, "tar cf - -C \"$1\" --exclude=./bench . | cat")
}

fn find(tree: &Path) -> Result<()> {
    shell(tree, "find \"$1\" -printf %s")
}

fn python(tree: &Path) -> Result<()> {
    // Without -B python would look for a place to write its caches.
    shell(tree, "chroot \"$1\" python3 -B -c 'import json, ssl, asyncio, http.server, email, xml.dom.minidom'")
}

fn sequential(tree: &Path) -> Result<()> {
    let mut file = File::open(tree.join(LARGE_FILE))?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => break,
            len => total += len as u64,
        }
    }
    ensure!(total == LARGE_SIZE, "read {total} bytes of {LARGE_SIZE}");
    Ok(())
}

fn random(tree: &Path) -> Result<()> {
    let file = File::open(tree.join(LARGE_FILE))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let mut buffer = [0; 4096];
    // A fixed sequence (Knuth's MMIX generator): every sample and system reads the same blocks.
    let mut state = 1u64;
    for _ in 0..RANDOM_READS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (state >> 33) % (LARGE_SIZE / 4096);
        file.read_exact_at(&mut buffer, block * 4096).with_context(|| format!("block {block}"))?;
    }
    Ok(())
}
