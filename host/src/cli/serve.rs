//! `lazyroot serve`: the object server on its own.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use lazyroot_proto::frame::EventKind;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::cli::context::Context;
use crate::cli::upstreams::UpstreamArgs;
use crate::serve::report::{self, Kind, Metrics, Reporter};
use crate::serve::{BootHistory, Catalog, Endpoint, Event, Listener, ProfileUse, ServedImage, Server};

/// How long reads that are under way may take when the server ends.
const LAST_READS: Duration = Duration::from_secs(1);

/// Serve images to any number of VMs and mounts
#[derive(clap::Args)]
pub struct ServeArgs {
    /// Where to listen: unix:PATH, hybrid:PATH[:PORT] (Firecracker's and vhost-device-vsock's PATH_PORT) or vsock:[PORT]
    #[arg(short, long = "listen", value_name = "ADDRESS", required_unless_present_any = ["peer", "stdio"])]
    listen: Vec<Endpoint>,
    /// Where to listen for other lazyroots, which read through this one (--upstream unix:PATH): unix:PATH. They may
    /// read every image that is served, and have images imported
    #[arg(long, value_name = "ADDRESS")]
    peer: Vec<Endpoint>,
    /// Serve another lazyroot on standard input and output, until it hangs up
    #[arg(long, conflicts_with_all = ["listen", "peer"])]
    stdio: bool,
    /// Answer Prometheus at http://ADDRESS/metrics, to anybody who can reach it: HOST:PORT, as 127.0.0.1:9464 (port 0: any)
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Serve these images only (default: every image in the store)
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    source: UpstreamArgs,
}

/// Allows as many open files as the system lets us: every session is one, and the usual limit is 1,024.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

/// Serves until a signal ends it; its sockets are gone then.
pub fn run(args: &ServeArgs, context: &Context) -> Result<ExitCode> {
    raise_file_limit();
    let store = args.source.open(context)?;
    let catalog = if args.images.is_empty() {
        Catalog::whole(store)
    } else {
        let open = |name: &String| {
            let image = store.resolve(name)?;
            let pin = store.pin(&image, "a server")?;
            let history = BootHistory::new(&store, &image.id, ProfileUse::Follow);
            Ok(ServedImage::open(&image, store.source())?.with_history(history).pinned(pin))
        };
        Catalog::of(args.images.iter().map(open).collect::<Result<Vec<_>>>()?)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let server = Arc::new(Server::new(catalog, None, log_event));
        if args.stdio {
            let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
            server.serve_peer(Box::pin(stream)).await;
            return Ok(ExitCode::SUCCESS);
        }
        let mut listeners = JoinSet::new();
        let folders = context.home.runtime_dir("serve")?;
        report::sweep(&folders);
        let folder = tempfile::Builder::new().prefix("").tempdir_in(folders)?;
        let reporter = Reporter::new(server.clone(), Kind::Server, format!("serve-{}", std::process::id()));
        listeners.spawn(reporter.serve(Reporter::listen(folder.path())?));
        for endpoint in &args.listen {
            let listener = Listener::bind(endpoint)?;
            // On stdout, for a script that waits for it.
            writeln!(std::io::stdout(), "listening on {endpoint}")?;
            listeners.spawn(server.clone().serve(listener));
        }
        for endpoint in &args.peer {
            let listener = Listener::bind(endpoint)?;
            writeln!(std::io::stdout(), "listening on {endpoint} for other lazyroots")?;
            listeners.spawn(server.clone().serve_peers(listener));
        }
        if let Some(address) = args.metrics {
            let metrics = Metrics::bind(address, server.clone()).await?;
            writeln!(std::io::stdout(), "metrics at http://{}/metrics", metrics.address()?)?;
            listeners.spawn(metrics.serve());
        }
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            Some(ended) = listeners.join_next() => bail!("a listener ended: {ended:?}"),
            _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
            _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        }
    });
    // Sockets are removed meanwhile; a read under way, of an upstream or of our standard input, must not hold us up.
    runtime.shutdown_timeout(LAST_READS);
    served
}

fn log_event(event: Event) {
    match event.kind {
        EventKind::Warning | EventKind::Fatal => tracing::warn!("a guest reports: {}", event.text),
        EventKind::Init | EventKind::Mounted | EventKind::Started | EventKind::Ready => {
            tracing::info!("a guest reports {:?}", event.kind)
        }
    }
}
