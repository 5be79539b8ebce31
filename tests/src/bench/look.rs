//! Commands that look into a store with a large image: their time, and how much memory each takes at most.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::inputs::{Inputs, lazyroot};
use super::plan::Plan;
use super::report::{Cell, Report, cache};
use crate::inputs::LAZYROOT;

/// The name of this part.
pub const PART: &str = "look";

/// The image, and one that differs from it in a tenth.
const IMAGE: &str = "look";
const OTHER: &str = "look-other";

/// A hundred thousand files, each an object of its own.
const FOLDERS: u32 = 1000;
const FILES: u32 = 100;

/// What a command may take besides three times the manifest, in bytes.
const ALLOWANCE: u64 = 64 << 20;

/// Commands. What they write goes to nobody, or to the folder `{}`.
const COMMANDS: &[&[&str]] = &[
    &["store", "ls", "-R", "look"],
    &["store", "ls", "-R", "--format", "json", "look"],
    &["store", "tree", "look"],
    &["store", "find", "look", "--name", "*7"],
    &["store", "du", "look"],
    &["store", "stat", "look:/0/0"],
    &["store", "cat", "look:/0/0"],
    &["store", "stats"],
    &["store", "gc", "--dry-run"],
    &["store", "verify", "look"],
    &["store", "cp", "look:/", "{}/copy"],
    &["store", "push", "file://{}/bucket", "look"],
    &["image", "ls"],
    &["image", "inspect", "look"],
    &["image", "diff", "look", "look-other"],
];

/// Takes the samples.
///
/// # Errors
/// If an image cannot be made or a command fails.
pub fn run(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    for (name, differing) in [(IMAGE, 0), (OTHER, FOLDERS / 10)] {
        import(&inputs.work, name, differing)?;
    }
    let manifest = fs::metadata(inputs.store.resolve(IMAGE)?.manifest)?.len();
    let bound = 3 * manifest + ALLOWANCE;
    report.about(
        PART,
        SYSTEM,
        &format!(
            "an image of {} files, its manifest of {:.1} MB; memory is the largest resident set of a run, beside three \
             times the manifest and 64 MiB",
            FOLDERS * FILES,
            manifest as f64 / 1e6
        ),
    );
    for words in COMMANDS {
        let cell = Cell::new(PART, &words.join(" ").replace("{}/", ""), cache::WARM, SYSTEM);
        let mut most = 0;
        for _ in 0..plan.samples {
            let folder = TempDir::new_in(&inputs.work)?;
            let (seconds, memory) = sample(words, folder.path())?;
            report.add(&cell, seconds, None);
            most = most.max(memory);
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        report.note(&cell, &format!("{:.0} of {:.0} MiB", mib(most), mib(bound)));
    }
    Ok(())
}

const SYSTEM: &str = "lazyroot";

/// Seconds, and the largest resident set in bytes (time(1) asks wait4(2)).
fn sample(words: &[&str], folder: &Path) -> Result<(f64, u64)> {
    let path = folder.to_str().context("a path that is text")?;
    let said = folder.join("time");
    let mut command = Command::new("time");
    command.args(["-f", "%M", "-o"]).arg(&said).arg(LAZYROOT.path());
    command.args(words.iter().map(|word| word.replace("{}", path))).stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let output = command.output().context("time(1) is not there")?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let kib: u64 = fs::read_to_string(said)?.trim().parse().context("time(1) says no number")?;
    Ok((seconds, kib << 10))
}

/// Imports a made-up tree of many small files, which stays for the next run.
fn import(work: &Path, name: &str, differing: u32) -> Result<()> {
    if lazyroot(&["image", "inspect", name]).is_ok() {
        return Ok(());
    }
    let tree = TempDir::new_in(work)?;
    for folder in 0..FOLDERS {
        let dir = tree.path().join(folder.to_string());
        fs::create_dir(&dir)?;
        // More than 64 bytes, which are kept in the manifest itself.
        let seed = if folder < differing { FOLDERS + folder } else { folder };
        for file in 0..FILES {
            fs::write(dir.join(file.to_string()), format!("{seed:50}{file:50}"))?;
        }
    }
    lazyroot(&["image", "import", &format!("dir:{}", tree.path().display()), "--name", name])
}
