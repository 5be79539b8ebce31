//! Mounts on this machine: the same tree, the same workloads, system after system.
//!
//! Every sample starts with a fresh mount, so what a guest would cache is cold. `all-cold` drops the host's caches
//! before; what follows it is `cold`, for then the workload's content is in the host's page cache; `warm` is
//! the same workload again on the same mount. A sample during which the kernel took pages back is of neither state, and
//! is taken again. A machine's pace changes from one second to the next: so each of these samples comes with one of the
//! ceiling, which is mounted beside, in either order, and the ratio is that of such pairs.

mod bench_fs;
mod composefs;
mod erofsfuse;
mod lazyroot;
mod mounted;
mod nydus;
mod over_uring;
mod squashfuse;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, str};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::caches::{Watch, drop_host_caches};
use super::inputs::{Inputs, SCRIPT};
use super::peers::processor_time_of_all;
use super::plan::{Plan, title};
use super::report::{Cell, Fetched, Report, cache};
use crate::fuse_uring::Switch;

/// The name of this part.
pub const PART: &str = "native";

/// Warm samples of one mount: most are much shorter than what it takes to come to them.
const WARM_SAMPLES: u32 = 5;

/// How often a sample is taken at most; a round goes without it on a machine that takes pages back from each.
const TRIES: u32 = 8;

/// Something that mounts the tree.
trait System {
    /// Mounts it at a folder, for a workload.
    fn mount(&self, at: &Path, workload: &str) -> Result<Box<dyn Mounted>>;

    /// Called before a workload is sampled: for systems that learn from what was read before.
    fn learn(&self, _at: &Path, _workload: &str) -> Result<()> {
        Ok(())
    }

    /// Whether content comes from the host's disk, so that dropping the host's caches means something.
    fn reads_disk(&self) -> bool {
        true
    }

    /// Version, options, and what its image cost, for people.
    fn about(&self) -> String;
}

/// A mount, undone when dropped.
trait Mounted {
    /// Payload bytes and requests so far, where a server counts them.
    fn fetched(&self) -> Option<Fetched> {
        None
    }
}

/// How a system gets ready for an image; an error is the reason why it is absent.
type Prepare = fn(&Inputs) -> Result<Box<dyn System>>;

/// The systems. The first is the ceiling: the very same objects, with no FUSE and no server in between.
const SYSTEMS: &[(&str, Prepare)] = &[
    (composefs::NAME, composefs::prepare),
    ("lazyroot", lazyroot::without_profile),
    ("lazyroot with profile", lazyroot::with_profile),
    ("lazyroot, profile there", lazyroot::with_profile_there),
    ("lazyroot, io_uring", |inputs| over_uring::prepare(lazyroot::without_profile, inputs)),
    ("lazyroot with profile, io_uring", |inputs| over_uring::prepare(lazyroot::with_profile, inputs)),
    ("lazyroot, profile there, io_uring", |inputs| over_uring::prepare(lazyroot::with_profile_there, inputs)),
    ("naive data plane", bench_fs::naive),
    ("FUSE from memory", bench_fs::memory),
    ("FUSE from memory + socket", bench_fs::socket),
    ("erofsfuse", erofsfuse::prepare),
    ("squashfuse", squashfuse::prepare),
    ("nydus", nydus::prepare),
];

/// Systems without which the others' figures mean nothing: these must run.
const ESSENTIAL: &[&str] = &[composefs::NAME, "lazyroot"];

/// The workloads of workloads.sh.
const WORKLOADS: &[&str] = &["tar", "find", "python", "gcc", "sequential", "random"];

/// Measures every workload on every system, in an order that differs from round to round.
///
/// # Errors
/// If an essential system or a workload fails: a benchmark of what does not work is worth nothing.
pub fn run(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    report.compare(PART, composefs::NAME);
    // But for those that say so; a kernel without the switch is as if it was off.
    let _off = Switch::turn(false);
    let mut systems: Vec<(&str, Box<dyn System>)> = Vec::new();
    for (name, prepare) in SYSTEMS.iter().filter(|(name, _)| *name == composefs::NAME || plan.has_system(name)) {
        match prepare(inputs) {
            Ok(system) => {
                report.about(PART, name, &system.about());
                systems.push((name, system));
            }
            Err(error) if ESSENTIAL.contains(name) => return Err(error.context(*name)),
            Err(error) => report.about(PART, name, &format!("not run: {error:#}")),
        }
    }
    let bench = Bench::new(inputs, systems[0].1.as_ref())?;
    let workloads = plan.workloads(WORKLOADS);
    let mut order: Vec<_> =
        systems.iter().flat_map(|system| workloads.iter().map(move |name| (system, *name))).collect();
    for round in 0..plan.samples {
        fastrand::shuffle(&mut order);
        for ((name, system), workload) in &order {
            bench.sample(name, system.as_ref(), workload, report).with_context(|| format!("{workload} on {name}"))?;
        }
        eprintln!("native: round {} of {} done", round + 1, plan.samples);
    }
    Ok(())
}

struct Bench<'a> {
    ceiling: &'a dyn System,
    mountpoint: PathBuf,
    /// For the ceiling, while another system is mounted.
    beside: PathBuf,
}

impl<'a> Bench<'a> {
    fn new(inputs: &Inputs, ceiling: &'a dyn System) -> Result<Self> {
        let bench = Self { ceiling, mountpoint: inputs.work.join("mnt"), beside: inputs.work.join("beside") };
        fs::create_dir_all(&bench.mountpoint)?;
        fs::create_dir_all(&bench.beside)?;
        Ok(bench)
    }

    /// One sample in each cold state of the caches, and some in the warm one.
    fn sample(&self, name: &str, system: &dyn System, workload: &str, report: &mut Report) -> Result<()> {
        if let Err(error) = system.learn(&self.mountpoint, workload) {
            report.about(PART, name, &format!("not run: {error:#}"));
            return Ok(());
        }
        let cell = |cache| Cell::new(PART, title(PART, workload), cache, name);
        if system.reads_disk() {
            drop_host_caches()?;
            let tree = Tree::mount(system, &self.mountpoint, workload)?;
            tree.run(cache::ALL_COLD)?.add_to(report, &cell(cache::ALL_COLD));
        }
        if name == composefs::NAME {
            // The rest of it is sampled beside each of the others.
            return Ok(());
        }
        // The store's content is in the host's page cache from here on, as the state says.
        Tree::mount(self.ceiling, &self.beside, workload)?.run(cache::COLD)?;
        let mut trees = None;
        Self::pair(report, &cell(cache::COLD), || {
            trees = None;
            let both = in_either_order(
                || Tree::mount(self.ceiling, &self.beside, workload).and_then(Tree::sampled),
                || Tree::mount(system, &self.mountpoint, workload).and_then(Tree::sampled),
            );
            let ((beside, ceiling), (tree, sample)) = both?;
            trees = Some((beside, tree));
            Ok([ceiling, sample])
        })?;
        let (beside, tree) = trees.context("nothing was sampled")?;
        for _ in 0..WARM_SAMPLES {
            let take =
                || in_either_order(|| beside.run(cache::WARM), || tree.run(cache::WARM)).map(<[Sample; 2]>::from);
            Self::pair(report, &cell(cache::WARM), take)?;
        }
        Ok(())
    }

    /// Takes a sample of the ceiling and one for `cell`, again until the caches stay what they are said to be.
    fn pair(report: &mut Report, cell: &Cell, mut take: impl FnMut() -> Result<[Sample; 2]>) -> Result<()> {
        for _ in 0..TRIES {
            let [ceiling, sample] = take()?;
            if ceiling.caches_stayed && sample.caches_stayed {
                report.pair(cell, sample.seconds / ceiling.seconds);
                ceiling.add_to(report, &Cell { system: composefs::NAME.into(), ..cell.clone() });
                sample.add_to(report, cell);
                break;
            }
            report.retake(cell);
        }
        Ok(())
    }
}

/// A system's mount, for a workload.
struct Tree<'a> {
    at: &'a Path,
    workload: &'a str,
    mounted: Box<dyn Mounted>,
}

impl<'a> Tree<'a> {
    fn mount(system: &dyn System, at: &'a Path, workload: &'a str) -> Result<Self> {
        Ok(Self { at, workload, mounted: system.mount(at, workload)? })
    }

    /// With its first sample.
    fn sampled(self) -> Result<(Self, Sample)> {
        let sample = self.run(cache::COLD)?;
        Ok((self, sample))
    }

    fn run(&self, cache: &str) -> Result<Sample> {
        let (before, busy, watch) = (self.mounted.fetched(), processor_time_of_all()?, Watch::start()?);
        let seconds = run_workload(self.at, self.workload, cache)?;
        let (caches_stayed, processor) = (watch.caches_stayed()?, processor_time_of_all()? - busy);
        let fetched = self.mounted.fetched().zip(before).map(|(now, before)| (now.0 - before.0, now.1 - before.1));
        Ok(Sample { seconds, processor, fetched, caches_stayed })
    }
}

/// Does both, in an order left to chance: which comes first must favour neither.
fn in_either_order<A, B>(first: impl FnOnce() -> Result<A>, second: impl FnOnce() -> Result<B>) -> Result<(A, B)> {
    if fastrand::bool() {
        let one = first()?;
        return Ok((one, second()?));
    }
    let other = second()?;
    Ok((first()?, other))
}

/// What one run of a workload took.
struct Sample {
    seconds: f64,
    /// Of everything on the machine, in seconds.
    processor: f64,
    fetched: Option<Fetched>,
    caches_stayed: bool,
}

impl Sample {
    fn add_to(self, report: &mut Report, cell: &Cell) {
        report.processor_time(cell, self.processor);
        report.add(cell, self.seconds, self.fetched);
    }
}

/// Runs a workload on the tree mounted at a folder, with the caches in this state; what it took in seconds.
fn run_workload(at: &Path, workload: &str, cache: &str) -> Result<f64> {
    // The compiler writes there; mounts are read-only.
    let _scratch = (workload == "gcc").then(|| Scratch::mount(at.join("tmp"))).transpose()?;
    let output = Command::new("bash")
        .args(["-c", SCRIPT, "workloads.sh", "mounted"])
        .arg(at)
        .args([workload, cache])
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let said = str::from_utf8(&output.stdout)?;
    let nanoseconds = said.split_ascii_whitespace().nth(3).and_then(|word| word.parse::<f64>().ok());
    Ok(nanoseconds.with_context(|| format!("no result in '{said}'"))? / 1e9)
}

/// A tmpfs, unmounted when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn mount(at: PathBuf) -> Result<Self> {
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"mode=1777").context("cannot mount a tmpfs")?;
        Ok(Self(at))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("a tmpfs unmounts");
    }
}
