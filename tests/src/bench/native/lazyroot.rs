//! `lazyroot mount`, reading from a server in a process of its own: ours, which counts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use lazyroot::serve::{Catalog, Endpoint, Listener, ServedImage, Server};
use lazyroot::store::Image;

use super::mounted::Served;
use super::{Fetched, Inputs, Mounted, System};
use crate::bench::inputs::IMAGE;
use crate::given;

struct Lazyroot {
    serving: Serving,
}

/// Gets a server ready.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    Ok(Box::new(Lazyroot { serving: Serving::new(inputs)? }))
}

impl System for Lazyroot {
    fn mount(&self, at: &Path) -> Result<Box<dyn Mounted>> {
        let server = self.serving.start()?;
        let mut command = Command::new(given("LAZYROOT_TEST_BIN"));
        command.args(["mount", "--foreground", "--connect", &server.endpoint.to_string(), IMAGE]).arg(at);
        Ok(Box::new(Lazy { _mount: Served::start(command, at)?, server }))
    }

    fn about(&self) -> String {
        "lazyroot mount --connect, everything verified".into()
    }
}

/// What servers of the image have in common.
pub struct Serving {
    runtime: tokio::runtime::Runtime,
    image: Image,
    source: Arc<dyn lazyroot::store::ObjectSource>,
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

    /// Starts a server, which ends when dropped.
    pub fn start(&self) -> Result<Running> {
        let catalog = Catalog::of([ServedImage::open(&self.image, self.source.clone())?]);
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
        let stats = self.server.stats().snapshot();
        (stats.bytes, stats.requests)
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
