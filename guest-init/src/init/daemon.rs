//! The process behind a VM's root: it mounts the image, answers the kernel, and runs what the host asks for.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lazyroot_proto::frame::EventKind;
use lazyroot_proto::settings::Settings;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::thread::disable_transparent_huge_pages;

use crate::agent::Agent;
use crate::agent::mode::Mode;
use crate::clock::monotonic_now;
use crate::init::boot::{DAEMON_READY, SYSROOT};
use crate::init::cmdline::{self, Instructions};
use crate::init::notify::Notify;
use crate::init::settings;
use crate::link::{Address, Link, REQUEST_DEADLINE};
use crate::mount::{self, Upper, disk, scratch};
use crate::threads;

/// Runs until the machine powers off. `started` is when init began, in nanoseconds since the kernel did.
///
/// # Errors
/// If the image cannot be mounted. The host has been told then, if it could be reached.
pub fn main(started: u64) -> Result<()> {
    // Killing the process behind the root would leave nothing that works. Best effort: not every kernel has it.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    // To page this process in may take this process, so none of it may be swapped out. Only what is touched is
    // locked: stacks and the FUSE session's buffers of 16 MiB a thread stay as small as what they are used for.
    // Programs do not inherit the lock. Best effort: an image without swap does not need it.
    let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    // Nor is more kept than what is touched: of each of those buffers a few pages are, of which khugepaged would make a huge
    // page of 2 MiB. Programs do inherit this; `sys::prepare_program` takes it back. Best effort: without it only more memory
    // is taken.
    let _ = disable_transparent_huge_pages(true);
    let cmdline = fs::read_to_string("/proc/cmdline").context("cannot read the kernel command line")?;
    let Instructions::Boot(boot) = Instructions::parse(&cmdline)? else { bail!("a probe boots no image") };
    let address = Address::Vsock(boot.port);
    let link = Link::connect(address.clone(), boot.trust.manifest, REQUEST_DEADLINE)
        .context("cannot reach lazyroot on the host")?;
    let link = Arc::new(link);
    link.send_event(EventKind::Init, started, "");
    let mounted = match mount_root(&link, &boot) {
        Ok(mounted) => mounted,
        Err(error) => return Err(give_up(&link, error)),
    };
    let notify = match prepare(&address, &boot, &mounted) {
        Ok(notify) => notify,
        Err(error) => return Err(give_up(&link, error)),
    };
    link.send_event(EventKind::Mounted, monotonic_now(), "");
    // Open before it moves: the descriptor follows the mount.
    let root = rustix::fs::open(SYSROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{DAEMON_READY}")?;
    stdout.flush()?;
    // A byte says that the image is PID 1's root, with /dev and /proc in it, which programs need. The end without
    // one says that this failed: PID 1 is about to power off, and needs the root until then.
    if std::io::stdin().read_exact(&mut [0]).is_ok() {
        if let Some(notify) = notify {
            notify.watch(link, root.try_clone()?);
        }
        let agent = Agent::new(address, root, mounted.upper()?, boot.mode, mounted.content().recorder().clone());
        threads::start("agent", move || agent.run())?;
    }
    mounted.wait().context("the root's data layer ended")
}

/// Tells the host why this guest cannot boot.
fn give_up(link: &Link, error: anyhow::Error) -> anyhow::Error {
    link.send_event(EventKind::Fatal, monotonic_now(), &format!("{error:#}"));
    // Time for the message to leave the machine before PID 1 ends it.
    std::thread::sleep(Duration::from_millis(200));
    error
}

/// Makes the mounted image ready to become the root; for an init, with a socket that hears from it.
fn prepare(address: &Address, boot: &cmdline::Boot, mounted: &mount::Mounted) -> Result<Option<Notify>> {
    let sysroot = Path::new(SYSROOT);
    let settings = if boot.settings { settings::fetch(address)? } else { Settings::default() };
    settings::apply(&settings, sysroot, boot.mode)?;
    if !boot.disk {
        scratch::mount_tmpfs(sysroot);
    }
    if boot.mode == Mode::Agent {
        return Ok(None);
    }
    if let Some(name) = &boot.hostname {
        settings::write_hostname(sysroot, name);
    }
    // A disk may have it from an earlier boot.
    if !mounted.has_changed("etc/machine-id") {
        settings::write_machine_id(sysroot)?;
    }
    Notify::bind().map(Some)
}

fn mount_root(link: &Arc<Link>, boot: &cmdline::Boot) -> Result<mount::Mounted> {
    let workdir = Path::new("/run/lazyroot");
    fs::create_dir_all(workdir)?;
    let upper = match boot.disk {
        false => Upper::Tmpfs,
        true => {
            let device = disk::find()?;
            disk::make_ready(&device)?;
            Upper::Disk(device)
        }
    };
    let mounted = mount::mount(link.clone(), boot.trust, Path::new(SYSROOT), workdir, upper)?;
    // Best effort: an empty folder in /run bothers nobody.
    let _ = fs::remove_dir(workdir);
    Ok(mounted)
}
