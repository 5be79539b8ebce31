//! `lazyroot mount`, reading from a server in a process of its own: ours, which counts.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lazyroot::serve::{BootHistory, Catalog, Endpoint, Listener, ServedImage, Server};
use lazyroot::store::{Image, ObjectSource, Profile, ProfileFile};

use super::mounted::Served;
use super::{Inputs, Mounted, System, run_workload};
use crate::bench::inputs::IMAGE;
use crate::bench::report::{Fetched, cache};
use crate::lazyroot::program;

/// How long a server may take to write down what a guest has read, and a profile to come.
const PROFILE_DEADLINE: Duration = Duration::from_secs(3);

/// A profile that nothing has come of for so long is there.
const SETTLED: Duration = Duration::from_millis(50);

struct Lazyroot(Serving);

/// Every mount is the first.
pub fn without_profile(inputs: &Inputs) -> Result<Box<dyn System>> {
    Ok(Box::new(Lazyroot(Serving::new(inputs)?)))
}

impl System for Lazyroot {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        Ok(Box::new(mount(self.0.start(None)?, at)?))
    }

    fn about(&self) -> String {
        "lazyroot mount --connect, everything verified".into()
    }
}

struct WithProfile {
    serving: Serving,
    file: ProfileFile,
    /// By workload.
    profiles: RefCell<HashMap<String, Profile>>,
    begin: Begin,
}

/// When the workload begins.
#[derive(Clone, Copy, PartialEq)]
enum Begin {
    AtOnce,
    WhenThere,
}

/// A mount before this one did the same.
pub fn with_profile(inputs: &Inputs) -> Result<Box<dyn System>> {
    profiled(inputs, Begin::AtOnce)
}

/// The same, and what it read has come, as it has in a VM whose kernel and init take their time.
pub fn with_profile_there(inputs: &Inputs) -> Result<Box<dyn System>> {
    profiled(inputs, Begin::WhenThere)
}

fn profiled(inputs: &Inputs, begin: Begin) -> Result<Box<dyn System>> {
    let file = inputs.store.profile(&inputs.image.id);
    Ok(Box::new(WithProfile { serving: Serving::new(inputs)?, file, profiles: RefCell::default(), begin }))
}

impl System for WithProfile {
    fn mount(&self, at: &Path, workload: &str) -> Result<Box<dyn Mounted>> {
        match self.profiles.borrow().get(workload) {
            Some(profile) => self.file.write(profile)?,
            None => bail!("no profile of {workload} was recorded"),
        }
        let mounted = mount(self.serving.start(Some(self.file.clone()))?, at)?;
        if self.begin == Begin::WhenThere {
            mounted.server.settle();
        }
        Ok(Box::new(mounted))
    }

    fn learn(&self, at: &Path, workload: &str) -> Result<()> {
        if self.profiles.borrow().contains_key(workload) {
            return Ok(());
        }
        self.file.remove()?;
        let Lazy { _mount, server } = mount(self.serving.start(Some(self.file.clone()))?, at)?;
        run_workload(at, workload, cache::COLD)?;
        drop(_mount);
        let begin = Instant::now();
        let profile = loop {
            match self.file.read() {
                Some(profile) => break profile,
                // There is nothing to learn from who reads nothing.
                None if server.server.totals().snapshot().objects == 0 => break Profile::default(),
                None if begin.elapsed() > PROFILE_DEADLINE => bail!("no profile of {workload} was written"),
                None => thread::sleep(Duration::from_millis(10)),
            }
        };
        drop(server);
        self.profiles.borrow_mut().insert(workload.to_owned(), profile);
        Ok(())
    }

    fn about(&self) -> String {
        let begin = match self.begin {
            Begin::AtOnce => "",
            Begin::WhenThere => "; it begins when the profile has come",
        };
        format!("the same, after a mount on which the same workload ran{begin}")
    }
}

/// Mounts the image from a server.
fn mount(server: Running, at: &Path) -> Result<Lazy> {
    let mut command = program();
    command.args(["mount", "--foreground", "--connect", &server.endpoint.to_string(), IMAGE]).arg(at);
    Ok(Lazy { _mount: Served::start(command, at)?, server })
}

/// What servers of the image have in common.
pub struct Serving {
    runtime: tokio::runtime::Runtime,
    image: Image,
    source: Arc<dyn ObjectSource>,
    socket: PathBuf,
}

impl Serving {
    /// For the tree's image.
    pub fn new(inputs: &Inputs) -> Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            // By digest: so it is itself, whatever is named like it later.
            image: inputs.store.resolve(&inputs.image.id.to_string())?,
            source: inputs.store.source(),
            socket: inputs.fresh("server.sock")?,
        })
    }

    /// Starts a server, which ends when dropped, with a profile perhaps.
    pub fn start(&self, profile: Option<ProfileFile>) -> Result<Running> {
        let image = ServedImage::open(&self.image, self.source.clone())?;
        let image = match profile {
            Some(profile) => image.with_history(BootHistory::of_profile(profile)),
            None => image,
        };
        let catalog = Catalog::of([image]);
        let server = Arc::new(Server::new(catalog, None, |_| ()));
        let endpoint = Endpoint::Unix(self.socket.clone());
        let task = {
            let _guard = self.runtime.enter();
            self.runtime.spawn(server.clone().serve(Listener::bind(&endpoint)?))
        };
        Ok(Running { runtime: self.runtime.handle().clone(), server, task, endpoint })
    }
}

/// A server of the image.
pub struct Running {
    runtime: tokio::runtime::Handle,
    server: Arc<Server>,
    task: tokio::task::JoinHandle<()>,
    /// Its address.
    pub endpoint: Endpoint,
}

impl Running {
    /// Payload bytes and requests so far.
    pub fn fetched(&self) -> Fetched {
        let stats = self.server.totals().snapshot();
        (stats.bytes, stats.requests)
    }

    /// Waits until nothing is sent any more.
    fn settle(&self) {
        let begin = Instant::now();
        let (mut last, mut since) = (self.fetched(), begin);
        while since.elapsed() < SETTLED && begin.elapsed() < PROFILE_DEADLINE {
            thread::sleep(Duration::from_millis(2));
            let now = self.fetched();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        // Its socket is gone only when it is.
        let _ = self.runtime.block_on(&mut self.task);
    }
}

/// A mount and its server, in the order in which they end.
pub struct Lazy {
    /// The mount.
    pub _mount: Served,
    /// Where it reads from.
    pub server: Running,
}

impl Mounted for Lazy {
    fn fetched(&self) -> Option<Fetched> {
        Some(self.server.fetched())
    }
}
