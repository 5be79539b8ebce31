//! The native mount against a local composefs mount of the same image: the ceiling, since it reads the very same
//! objects with no FUSE and no server in between.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use composefs::fsverity::Sha256HashValue;
use composefs::mount::MountOptions;
use composefs::repository::Repository;
use lazyroot::home::Home;
use lazyroot::serve::{Catalog, Endpoint, Listener, ServedImage, Server};
use lazyroot::store::{Image, Store};

use super::report::{Cell, Report};
use super::workloads::{self, LARGE_FILE, LARGE_SIZE};
use crate::{data, given, rootfs};

/// The system that lazyroot is compared with.
const CEILING: &str = "composefs";

const IMAGE: &str = "bench";
/// Cold and warm samples of every workload on every system.
const SAMPLES: usize = 7;

/// Measures every workload on every system, in an order that differs from round to round.
///
/// # Errors
/// If anything cannot be set up or a workload fails: a benchmark of what does not work is worth nothing.
pub fn run(work: &Path, report: &mut Report) -> Result<()> {
    let home = Home::open()?;
    let store = Store::open(&home, None)?;
    let image = match store.resolve(IMAGE) {
        Ok(image) => image,
        Err(_) => import(work)?,
    };
    let image = store.resolve(&image.id.to_string())?;
    let bench = Bench::new(work, store, image)?;
    workloads::ALL.iter().for_each(|workload| report.compare(workload.name, CEILING));
    for round in 0..SAMPLES {
        for (number, workload) in workloads::ALL.iter().enumerate() {
            // Alternates who goes first, so that neither profits from a machine that warms up or slows down.
            let mut systems = [System::Ceiling, System::Lazyroot];
            if (round + number) % 2 == 1 {
                systems.reverse();
            }
            for system in systems {
                bench.sample(system, workload, report)?;
            }
        }
        eprintln!("round {} of {SAMPLES} done", round + 1);
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum System {
    Ceiling,
    Lazyroot,
}

/// Makes the image: the test's Debian root and one large file.
fn import(work: &Path) -> Result<Image> {
    let tree = work.join("tree");
    if !tree.join(LARGE_FILE).exists() {
        let status = Command::new("cp").arg("-a").arg(rootfs()).arg(&tree).status()?;
        ensure!(status.success(), "cannot copy the root");
        fs::create_dir(tree.join("bench"))?;
        data::write_unique(&tree.join(LARGE_FILE), LARGE_SIZE, 0)?;
    }
    let source = format!("dir:{}", tree.display());
    let lazyroot = given("LAZYROOT_TEST_BIN");
    let status = Command::new(lazyroot).args(["image", "import", &source, "--name", IMAGE]).status()?;
    ensure!(status.success(), "cannot import {source}");
    Store::open(&Home::open()?, None)?.resolve(IMAGE)
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    store: Store,
    image: Image,
    mountpoint: PathBuf,
    socket: PathBuf,
}

impl Bench {
    fn new(work: &Path, store: Store, image: Image) -> Result<Self> {
        let mountpoint = work.join("mnt");
        fs::create_dir_all(&mountpoint)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { runtime, store, image, mountpoint, socket: work.join("server.sock") })
    }

    /// One cold and one warm sample.
    fn sample(&self, system: System, workload: &workloads::Workload, report: &mut Report) -> Result<()> {
        let (name, mount): (_, Box<dyn Mounted>) = match system {
            System::Ceiling => (CEILING, Box::new(self.ceiling()?)),
            System::Lazyroot => ("lazyroot", Box::new(self.lazyroot()?)),
        };
        for cache in ["cold", "warm"] {
            let before = mount.fetched();
            let start = Instant::now();
            (workload.run)(&self.mountpoint)?;
            let seconds = start.elapsed().as_secs_f64();
            let fetched = mount.fetched().zip(before).map(|(now, before)| (now.0 - before.0, now.1 - before.1));
            let cell = Cell { workload: workload.name.into(), cache, system: name.into() };
            report.add(cell, seconds, fetched);
        }
        Ok(())
    }

    fn ceiling(&self) -> Result<Composefs<'_>> {
        let mut repository = Repository::<Sha256HashValue>::open_path(rustix::fs::CWD, self.store.path())?;
        repository.set_insecure();
        // By digest: by name composefs demands fs-verity of the file system.
        repository.mount_at(&self.image.id.to_hex(), &self.mountpoint, &MountOptions::default())?;
        Ok(Composefs(&self.mountpoint))
    }

    fn lazyroot(&self) -> Result<Lazy<'_>> {
        let catalog = Catalog::of([ServedImage::open(&self.image, self.store.source())?]);
        let server = Arc::new(Server::new(catalog, None, |_| ()));
        let endpoint = Endpoint::Unix(self.socket.clone());
        let task = {
            let _guard = self.runtime.enter();
            self.runtime.spawn(server.clone().serve(Listener::bind(&endpoint)?))
        };
        let mut child = Command::new(given("LAZYROOT_TEST_BIN"))
            .args(["mount", "--foreground", "--connect", &endpoint.to_string(), IMAGE])
            .arg(&self.mountpoint)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line.trim_end() == "mounted", "lazyroot mount failed");
        Ok(Lazy { bench: self, server, task, child })
    }
}

/// A mounted system, unmounted when dropped.
trait Mounted {
    /// Payload bytes and requests so far, where a server counts them.
    fn fetched(&self) -> Option<(u64, u64)>;
}

struct Composefs<'a>(&'a Path);

impl Mounted for Composefs<'_> {
    fn fetched(&self) -> Option<(u64, u64)> {
        None
    }
}

impl Drop for Composefs<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::empty()).expect("the ceiling unmounts");
    }
}

struct Lazy<'a> {
    bench: &'a Bench,
    server: Arc<Server>,
    task: tokio::task::JoinHandle<()>,
    child: Child,
}

impl Mounted for Lazy<'_> {
    fn fetched(&self) -> Option<(u64, u64)> {
        let stats = self.server.stats().snapshot();
        Some((stats.bytes, stats.requests))
    }
}

impl Drop for Lazy<'_> {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::empty();
        rustix::mount::unmount(&self.bench.mountpoint, flags).expect("lazyroot unmounts");
        self.child.wait().expect("the mount's process ends");
        self.task.abort();
        // Its socket is gone only when it is.
        let _ = self.bench.runtime.block_on(&mut self.task);
    }
}
