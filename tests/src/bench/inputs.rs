//! What is measured on: one tree, as an image of lazyroot's and in the forms that its peers want.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lazyroot::home::Home;
use lazyroot::store::{Image, Store};

use crate::inputs::BENCH_ROOTFS;
use crate::lazyroot::program;
use crate::{data, kernel_deb};

/// The image's name in the benchmark's store.
pub const IMAGE: &str = "bench";

/// The workloads, as they are in the tree too, for VMs.
pub const SCRIPT: &str = include_str!("workloads.sh");
/// Where they are there.
pub const SCRIPT_PATH: &str = "bench/workloads.sh";

/// The large file that some of them read, and its size in bytes.
const LARGE_FILE: &str = "bench/large";
const LARGE_SIZE: u64 = 128 << 20;

/// The tree, and where things go.
pub struct Inputs {
    /// For files that stay until the next run.
    pub work: PathBuf,
    /// The tree itself.
    pub tree: PathBuf,
    /// lazyroot's home.
    pub home: Home,
    /// The store in it.
    pub store: Store,
    /// The tree, imported.
    pub image: Image,
}

/// A file that was made from the tree.
pub struct Made {
    /// Where it is.
    pub path: PathBuf,
    /// What making it cost, for people.
    pub about: String,
}

impl Inputs {
    /// Completes the tree, and imports it and the kernel; does nothing twice.
    ///
    /// # Errors
    /// If anything is missing.
    pub fn prepare(work: &Path) -> Result<Self> {
        fs::create_dir_all(work)?;
        let tree = BENCH_ROOTFS.path();
        let (script, large) = (tree.join(SCRIPT_PATH), tree.join(LARGE_FILE));
        let current = fs::read_to_string(&script).is_ok_and(|text| text == SCRIPT) && large.exists();
        if !current {
            data::write_unique(&large, LARGE_SIZE, 0)?;
            fs::write(&script, SCRIPT)?;
        }
        let home = Home::open()?;
        let store = Store::open(&home, None)?;
        if !current || store.resolve(IMAGE).is_err() {
            let kernel = kernel_deb();
            lazyroot(&["kernel", "import", &kernel.to_string_lossy()])?;
            lazyroot(&["image", "import", &format!("dir:{}", tree.display()), "--name", IMAGE])?;
        }
        let image = store.resolve(IMAGE)?;
        Ok(Self { work: work.to_owned(), tree, home, store, image })
    }

    /// The file `name`, made from the tree by `make`, unless an earlier run made it from this very tree.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn made(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<Made> {
        let path = self.work.join(name);
        let stamp = self.work.join(format!("{name}.made"));
        let id = self.image.id.to_hex();
        let known = fs::read_to_string(&stamp).unwrap_or_default();
        if let Some(about) = known.strip_prefix(&id).filter(|_| path.exists()) {
            return Ok(Made { path, about: about.trim().to_owned() });
        }
        // A folder of an interrupted run would be added to.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        let begin = Instant::now();
        make(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let seconds = begin.elapsed().as_secs_f64();
        let about = format!("made in {seconds:.1} s, {:.0} MB", size(&path)? as f64 / 1e6);
        fs::write(stamp, format!("{id} {about}"))?;
        Ok(Made { path, about })
    }

    /// Bytes of content that the workload `tar` or `sequential` reads in a VM.
    ///
    /// # Errors
    /// If the tree cannot be read.
    pub fn content_bytes(&self, workload: &str) -> Result<u64> {
        if workload == "sequential" {
            return Ok(LARGE_SIZE);
        }
        let lib = fs::read_dir(self.tree.join("usr/lib"))?.collect::<Result<Vec<_>, _>>()?;
        let python = lib.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
        python
            .map(|entry| size(&entry.path()))
            .sum::<Result<u64>>()
            .and_then(|bytes| Ok(bytes + size(&self.tree.join("usr/include"))?))
    }

    /// A path for a socket or a mount of this run, with nothing there.
    ///
    /// # Errors
    /// If something is there that is not ours.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> Result<u64> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// Runs a program to its end.
///
/// # Errors
/// If it fails; with what it said.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let said = [output.stderr, output.stdout].concat();
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    Ok(())
}

/// Runs lazyroot to its end.
///
/// # Errors
/// If it fails.
pub fn lazyroot(arguments: &[&str]) -> Result<()> {
    run(program().args(arguments))
}
