//! Imports: a tree for the first time and again, beside composefs' own command line, and what images that share most of
//! their content take on the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use super::inputs::{Inputs, run};
use super::plan::Plan;
use super::report::{Cell, Report, Unit, cache};
use crate::inputs::BENCH_TOOLS;
use crate::lazyroot::Lazyroot;
use crate::{data, rootfs};

/// The name of this part.
pub const PART: &str = "import";

/// composefs' own, which stores and hashes the same.
const CEILING: &str = "cfsctl";

const FIRST: &str = "lazyroot";
const AGAIN: &str = "lazyroot, again";

/// A file is remembered by its times once these are so old (two seconds, and one more).
const OLD_ENOUGH: std::time::Duration = std::time::Duration::from_secs(3);

/// Images that share nine tenths.
const SHARING: u64 = 10;

/// Takes the samples.
///
/// # Errors
/// If an import fails.
pub fn run_part(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    report.compare(PART, CEILING);
    report.about(
        PART,
        CEILING,
        "composefs-ctl: init --insecure, then create-image, which like lazyroot keeps all attributes",
    );
    let tree = rootfs();
    let cell = |system: &str| Cell::new(PART, "Debian tree", cache::WARM, system);
    std::thread::sleep(OLD_ENOUGH);
    // The tree into the page cache.
    cfsctl(&inputs.work, &tree)?;
    let mut slowest_again = 0f64;
    for round in 0..plan.samples {
        let mut ours = |report: &mut Report| -> Result<()> {
            let lazyroot = Lazyroot::default();
            let first = seconds(|| import(&lazyroot, &tree))?;
            report.add(&cell(FIRST), first, None);
            let again = seconds(|| import(&lazyroot, &tree))?;
            report.add(&cell(AGAIN), again, None);
            slowest_again = slowest_again.max(again / first);
            Ok(())
        };
        let theirs = |report: &mut Report| -> Result<()> {
            let taken = cfsctl(&inputs.work, &tree)?;
            report.add(&cell(CEILING), taken, None);
            Ok(())
        };
        // In turn: who goes second finds the disk busy with what the first wrote.
        match round % 2 {
            0 => theirs(report).and_then(|()| ours(report))?,
            _ => ours(report).and_then(|()| theirs(report))?,
        }
    }
    report.note(&cell(AGAIN), &format!("at most {slowest_again:.2} of the first import before it"));
    disk(report)
}

fn import(lazyroot: &Lazyroot, tree: &Path) -> Result<()> {
    run(&mut lazyroot.command(["image", "import", &format!("dir:{}", tree.display()), "--name", "debian"]))
}

/// Seconds that an import into a new repository takes with composefs' own program.
fn cfsctl(work: &Path, tree: &Path) -> Result<f64> {
    let repository = TempDir::new_in(work)?;
    let program = || {
        let mut command = Command::new(BENCH_TOOLS.path().join("bin/cfsctl"));
        command.arg("--repo").arg(repository.path());
        command
    };
    seconds(|| {
        run(program().args(["init", "--insecure", "--algorithm", "fsverity-sha256-12"]))?;
        run(program().args(["create-image", "--no-propagate-usr-to-root"]).arg(tree))
    })
}

/// What something takes, whatever was to be written before out of the way.
fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    rustix::fs::sync();
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// The repository's bytes on the disk with one image and with ten, of which each has a tenth to itself.
fn disk(report: &mut Report) -> Result<()> {
    let lazyroot = Lazyroot::default();
    let folder = TempDir::new()?;
    let shared = rootfs();
    let own_files = du(&shared)?.div_ceil(SHARING - 1) >> 20;
    let cell = |images: &str| Cell::new(PART, "store of images that share nine tenths", cache::WARM, images);
    let mut one = 0;
    for number in 0..SHARING {
        let tree = folder.path().join(number.to_string());
        // Links: their content is the same anyway.
        run(Command::new("cp").arg("-al").arg(&shared).arg(&tree))?;
        let own = tree.join("own");
        fs::create_dir(&own)?;
        for file in 0..own_files {
            data::write_unique(&own.join(file.to_string()), 1 << 20, 1 + number * own_files + file)?;
        }
        run(&mut lazyroot.command([
            "image",
            "import",
            &format!("dir:{}", tree.display()),
            "--name",
            &number.to_string(),
        ]))?;
        if number == 0 {
            one = du(lazyroot.home())?;
            report.add_in(Unit::Bytes, &cell("lazyroot, one image"), one as f64);
        }
        fs::remove_dir_all(tree)?;
    }
    let all = du(lazyroot.home())?;
    let cell = cell("lazyroot, ten images");
    report.add_in(Unit::Bytes, &cell, all as f64);
    report.note(&cell, &format!("{:.2} of one", all as f64 / one as f64));
    ensure!(one > 0, "an image takes nothing");
    Ok(())
}

/// Bytes that a folder takes on the disk, a file with several links once for each.
fn du(path: &Path) -> Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    // In units of 512 bytes (stat(2)).
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return Ok(own);
    }
    fs::read_dir(path)?.try_fold(own, |sum, entry| Ok(sum + du(&entry?.path())?))
}
