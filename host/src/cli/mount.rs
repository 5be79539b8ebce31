//! `lazyroot mount` and `umount`: the lazy root on this machine, through the guest's own data plane.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lazyroot_guest::link::{Address, Link, REQUEST_DEADLINE};
use lazyroot_guest::mount::{self, Mounted, Trust, Upper};

use crate::cli::background;
use crate::cli::context::Context;
use crate::cli::output::print;
use crate::cli::upstreams::UpstreamArgs;
use crate::serve::report::{Kind, Reporter};
use crate::serve::{BootHistory, Catalog, Endpoint, Listener, ProfileUse, ServedImage, Server};
use crate::store::{Image, Pin, Store};

/// How long the session of a mount may outlive it: it writes two small files when it ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Mount an image on this machine, without a VM (needs root)
#[derive(clap::Args)]
pub struct MountArgs {
    /// Image to mount: a name, or its digest
    image: String,
    /// Folder to mount it at
    dir: PathBuf,
    /// Let changes be made; they are kept in memory and gone with the mount
    #[arg(long)]
    read_write: bool,
    /// Read objects from this running server (unix:PATH) instead of one of this mount's own
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<Endpoint>,
    /// Stay in the foreground until the image is unmounted
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    source: UpstreamArgs,
}

/// Unmount an image (needs root)
#[derive(clap::Args)]
pub struct UmountArgs {
    /// Where it is mounted
    dir: PathBuf,
    /// Unmount now and let programs that still use it finish
    #[arg(long)]
    lazy: bool,
}

/// Mounts the image; returns when it is mounted, or, in the foreground, when it is unmounted again.
pub fn run(args: &MountArgs, context: &Context) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("mounting needs root: try sudo lazyroot mount ...");
    }
    let dir = fs::canonicalize(&args.dir)
        .with_context(|| format!("cannot mount at {}: is there such a folder?", args.dir.display()))?;
    if !dir.is_dir() {
        bail!("cannot mount at {}: it is no folder", dir.display());
    }
    // The image is looked for by the process that serves it: upstreams need not be asked twice.
    if !args.foreground && !background::is_here() {
        return background::start();
    }
    let store = args.source.open(context)?;
    let image = store.resolve(&args.image)?;
    if args.foreground {
        serve_mount(args, context, &store, &image, &dir)?.wait()?;
    } else {
        background::enter();
        serve_mount(args, context, &store, &image, &dir)?.wait()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A mount and all that serves it.
struct ServedMount {
    mount: Mounted,
    runtime: tokio::runtime::Runtime,
    /// Whether the mount has a server of its own.
    has_server: bool,
    /// Holds the server's socket.
    _private: tempfile::TempDir,
    _pin: Option<Pin>,
}

impl ServedMount {
    /// Waits until the image is unmounted.
    fn wait(self) -> Result<()> {
        let content = self.mount.content().clone();
        self.mount.wait().context("the mount's data layer ended")?;
        if self.has_server {
            // A round trip: what the mount has told last has arrived, too. It is remembered when the session ends, and
            // that is now.
            let _ = content.link().index();
        }
        self.runtime.shutdown_timeout(LAST_WORDS);
        Ok(())
    }
}

/// Mounts, and says so on standard output.
fn serve_mount(args: &MountArgs, context: &Context, store: &Store, image: &Image, dir: &Path) -> Result<ServedMount> {
    let private = tempfile::Builder::new().prefix("").tempdir_in(context.home.runtime_dir("mount")?)?;
    let pin = store.pin(image, &format!("the mount at {}", dir.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let address = match &args.connect {
        Some(Endpoint::Unix(path)) => Address::Unix(path.clone()),
        Some(other) => bail!("cannot connect to {other}: a mount reads from unix:PATH"),
        None => {
            let socket = private.path().join("s");
            let _guard = runtime.enter();
            let listener = Listener::bind(&Endpoint::Unix(socket.clone()))?;
            let history = BootHistory::new(store, &image.id, ProfileUse::Follow);
            let served = ServedImage::open(image, store.source())?.with_history(history);
            let server = Arc::new(Server::new(Catalog::of([served]), None, |_| ()));
            let reporter = Reporter::new(server.clone(), Kind::Mount, dir.to_string_lossy());
            runtime.spawn(reporter.serve(Reporter::listen(private.path())?));
            runtime.spawn(server.serve(listener));
            Address::Unix(socket)
        }
    };
    let mount = mount_image(address, image, dir, private.path(), args.read_write)?;
    runtime.spawn(unmount_on_signal(dir.to_owned()));
    if background::is_here() {
        let ready = File::options().write(true).open("/dev/null").map_err(Into::into);
        ready.and_then(|nowhere| background::ready("", &nowhere)).inspect_err(|_| {
            let _ = rustix::mount::unmount(dir, rustix::mount::UnmountFlags::DETACH);
        })?;
    } else {
        print("mounted\n")?;
    }
    Ok(ServedMount { mount, runtime, has_server: args.connect.is_none(), _private: private, _pin: pin })
}

fn mount_image(address: Address, image: &Image, dir: &Path, private: &Path, read_write: bool) -> Result<Mounted> {
    let link = Link::connect(address, image.id, REQUEST_DEADLINE).context("cannot reach the object server")?;
    let trust = Trust { manifest: image.id, index: image.index.id() };
    let workdir = private.join("w");
    crate::home::private_dir(&workdir)?;
    let upper = if read_write { Upper::Tmpfs } else { Upper::None };
    mount::mount(Arc::new(link), trust, dir, &workdir, upper)
}

async fn unmount_on_signal(dir: PathBuf) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
    }
    let _ = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
}

/// Unmounts an image; the mount's process ends by itself.
pub fn umount(args: &UmountArgs) -> Result<ExitCode> {
    let shown = args.dir.display();
    if !rustix::process::geteuid().is_root() {
        bail!("unmounting needs root: try sudo lazyroot umount {shown}");
    }
    if !mount::is_mounted(&args.dir).with_context(|| format!("cannot look at {shown}"))? {
        bail!("no image is mounted at {shown}");
    }
    let flags = if args.lazy { rustix::mount::UnmountFlags::DETACH } else { rustix::mount::UnmountFlags::empty() };
    match rustix::mount::unmount(&args.dir, flags) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(rustix::io::Errno::BUSY) => {
            bail!("{shown} is in use: end the programs that use it (fuser -vm {shown}), or give --lazy")
        }
        Err(error) => Err(error).with_context(|| format!("cannot unmount {shown}")),
    }
}
