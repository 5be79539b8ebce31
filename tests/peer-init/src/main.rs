//! The init of the benchmark's peers: VMs whose root is a disk or a folder of the host's. It does for that root
//! what guest-init does for an image that streams, and no more: modules, an overlay with changes in memory,
//! switch root, and the command on the console.
//!
//! Its arguments, after `--` on the kernel command line: the file system, what it mounts, `run`, and the command.
//!
//! A package of its own because it is linked statically, and the other tests' dependencies need not be.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_move};

/// The word that the command to run follows, and the two words of the root come before. The kernel puts words that
/// it does not know before those.
const COMMAND_FOLLOWS: &str = "run";

/// Where the root is mounted before it becomes it.
const SYSROOT: &str = "/sysroot";

/// Time for the host to read the last words before the machine is gone.
const LAST_WORDS: Duration = Duration::from_millis(500);

fn main() {
    let Err(error) = boot();
    eprintln!("peer-init: {error:#}");
    std::thread::sleep(LAST_WORDS);
    // Returning from PID 1 is a panic, and `panic=-1` ends the machine.
}

fn boot() -> Result<std::convert::Infallible> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("proc", "/proc", safe | MountFlags::NOEXEC, c"")?;
    mount_at("sysfs", "/sys", safe | MountFlags::NOEXEC, c"")?;
    mount_at("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755")?;
    mount_at("tmpfs", "/run", safe, c"mode=755")?;
    load_modules(Path::new("/modules"))?;

    for dir in ["/lower", "/changes"] {
        fs::create_dir_all(dir)?;
    }
    let words: Vec<String> = std::env::args().collect();
    let run = words.iter().position(|word| word == COMMAND_FOLLOWS).context("no command on the kernel command line")?;
    let (root, command) = (&words[..run], &words[run + 1..]);
    let [.., kind, source] = root else { bail!("no root on the kernel command line") };
    mount(source.as_str(), "/lower", kind.as_str(), MountFlags::RDONLY, c"")
        .with_context(|| format!("cannot mount {source} as {kind}"))?;
    mount("tmpfs", "/changes", "tmpfs", MountFlags::empty(), c"mode=755").context("cannot mount a tmpfs")?;
    for dir in ["/changes/upper", "/changes/work"] {
        fs::create_dir(dir)?;
    }
    let layers = c"lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work";
    mount("overlay", SYSROOT, "overlay", MountFlags::empty(), layers).context("cannot mount the overlay")?;

    for name in ["dev", "proc", "sys", "run"] {
        mount_move(format!("/{name}"), format!("{SYSROOT}/{name}")).with_context(|| format!("cannot move /{name}"))?;
    }
    std::env::set_current_dir(SYSROOT)?;
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot change root")?;
    std::env::set_current_dir("/")?;

    let (program, arguments) = command.split_first().context("no command on the kernel command line")?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let error = Command::new(program).args(arguments).env_clear().env("PATH", path).env("HOME", "/root").exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

fn mount_at(kind: &str, target: &str, flags: MountFlags, options: &std::ffi::CStr) -> Result<()> {
    match mount(kind, target, kind, flags, options) {
        // The kernel mounts devtmpfs by itself where it is configured to.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot mount {kind} at {target}")),
    }
}

/// Loads the modules that `order` in `folder` lists, in that order.
fn load_modules(folder: &Path) -> Result<()> {
    let list = fs::read_to_string(folder.join("order")).context("the initramfs has no order of modules")?;
    for name in list.lines() {
        let file = File::open(folder.join(name)).with_context(|| format!("the initramfs lacks {name}"))?;
        rustix::system::finit_module(&file, c"", 0).with_context(|| format!("cannot load {name}"))?;
    }
    Ok(())
}
