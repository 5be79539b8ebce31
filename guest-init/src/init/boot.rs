//! PID 1 of the initramfs: modules, the image's root, switch root, and the image's init or nothing but reaping.
//!
//! The data plane runs in a process of its own (`daemon`), which stays when the image's init takes PID 1 over.
//! Its `argv[0]` starts with `@`, the sign by which systemd spares root-storage daemons at shutdown.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lazyroot_proto::boot::{INITS, PROBE_MARKER};
use rustix::mount::{MountFlags, mount_move};
use rustix::process::{Pid, WaitOptions};

use crate::agent::mode::Mode;
use crate::agent::shutdown::power_off;
use crate::clock::monotonic_now;
use crate::complain::complain;
use crate::init::cmdline::Instructions;
use crate::sys;

/// The data plane's `argv[0]`.
pub const DAEMON_NAME: &str = "@lazyroot";

/// What the daemon says on its standard output when the image is mounted.
pub const DAEMON_READY: &str = "mounted";

/// Where the image is mounted before it becomes the root.
pub const SYSROOT: &str = "/sysroot";

/// Time for the host to read the last words before the machine is gone.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Boots; never returns.
pub fn main() -> ! {
    let Err(error) = boot();
    complain(format_args!("cannot boot: {error:#}"));
    std::thread::sleep(LAST_WORDS);
    power_off()
}

fn boot() -> Result<std::convert::Infallible> {
    let started = monotonic_now();
    mount_kernel_filesystems()?;
    let cmdline = fs::read_to_string("/proc/cmdline").context("cannot read the kernel command line")?;
    let boot = match Instructions::parse(&cmdline)? {
        Instructions::Probe => {
            println!("{PROBE_MARKER}");
            power_off()
        }
        Instructions::Boot(boot) => boot,
    };
    load_modules(Path::new("/modules"))?;
    if !has_console() {
        open_console();
    }
    if let Some(name) = &boot.hostname {
        rustix::system::sethostname(name.as_bytes()).context("cannot set the host name")?;
    }
    fs::create_dir_all(SYSROOT)?;
    let mut daemon = Command::new("/proc/self/exe")
        .arg0(DAEMON_NAME)
        // Eight threads that each keep a heap of their own would keep a third more memory than one heap (mallopt(3)).
        .env("MALLOC_ARENA_MAX", "1")
        .arg(started.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the data plane")?;
    if boot.mode == Mode::Agent {
        // While the data plane waits for the host. All of it moves to the image's root with what it is in.
        prepare_for_commands();
    }
    let mut line = String::new();
    let output = daemon.stdout.take().expect("standard output is a pipe");
    BufReader::new(output).read_line(&mut line)?;
    if line.trim_end() != DAEMON_READY {
        bail!("the image's root could not be mounted");
    }
    switch_root()?;
    // A byte, not just the pipe's end, which would come of a failure here too.
    let mut go = daemon.stdin.take().expect("standard input is a pipe");
    go.write_all(b"\n").context("the process behind the image's root is gone")?;
    drop(go);
    match boot.mode {
        Mode::Init => exec_init(),
        Mode::Agent => reap_for_ever(Pid::from_child(&daemon)),
    }
}

fn mount_at(kind: &str, target: &str, flags: MountFlags, options: &std::ffi::CStr) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    match rustix::mount::mount(kind, target, kind, flags, options) {
        // The kernel mounts devtmpfs by itself where it is configured to.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot mount {kind} at {target}")),
    }
}

/// What systemd expects of an initramfs, with its flags.
fn mount_kernel_filesystems() -> Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("proc", "/proc", safe | MountFlags::NOEXEC, c"")?;
    mount_at("sysfs", "/sys", safe | MountFlags::NOEXEC, c"")?;
    mount_at("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755")?;
    mount_at("tmpfs", "/run", safe, c"mode=755")
}

/// Loads the modules that `order` in `folder` lists, in that order. One that the kernel has already is fine.
fn load_modules(folder: &Path) -> Result<()> {
    let order = folder.join("order");
    let list = fs::read_to_string(&order).with_context(|| format!("cannot read {}", order.display()))?;
    for name in list.lines() {
        let file = File::open(folder.join(name)).with_context(|| format!("the initramfs lacks the module {name}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => (),
            Err(error) => return Err(error).with_context(|| format!("cannot load the module {name}")),
        }
    }
    Ok(())
}

/// The console's device number: what the kernel gives its init as standard streams.
const CONSOLE: (u32, u32) = (5, 1);

/// Whether the kernel had a console to give us.
fn has_console() -> bool {
    let of = |stat: rustix::fs::Stat| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    rustix::fs::fstat(rustix::stdio::stdout()).is_ok_and(|stat| of(stat) == CONSOLE)
}

/// Takes the console that a module has brought meanwhile. A guest without one boots silently.
fn open_console() {
    /// A virtio console introduces itself to its driver some milliseconds after that is loaded.
    const PATIENCE: Duration = Duration::from_millis(500);
    const POLL: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + PATIENCE;
    let console = loop {
        match File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/console") {
            Ok(console) => break console,
            Err(_) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(_) => return,
        }
    };
    // Fails only for a bad descriptor.
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

/// Makes the mounted image the root, and moves the kernel's file systems there.
fn switch_root() -> Result<()> {
    for name in ["dev", "proc", "sys", "run"] {
        let target = format!("{SYSROOT}/{name}");
        fs::create_dir_all(&target).with_context(|| format!("the image has no /{name}, and it cannot be made"))?;
        mount_move(format!("/{name}"), &target).with_context(|| format!("cannot move /{name} to the image"))?;
    }
    std::env::set_current_dir(SYSROOT)?;
    mount_move(".", "/").context("cannot move the image's root")?;
    rustix::process::chroot(".").context("cannot change root")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// What an init would do, for commands that run without one. A kernel may lack a file system; the command then does
/// without.
fn prepare_for_commands() {
    let _ = mount_at("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=620,ptmxmode=666,gid=5");
    let _ = mount_at("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let _ = mount_at("cgroup2", "/sys/fs/cgroup", flags, c"");
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(link));
    }
    // Programs expect 127.0.0.1 even where no init configures a network.
    let _ = sys::bring_up("lo");
}

fn exec_init() -> Result<std::convert::Infallible> {
    for init in INITS {
        // Only returns if there is no such program.
        let error = Command::new(init).exec();
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error).with_context(|| format!("cannot start the image's {init}"));
        }
    }
    bail!("the image has no init ({}): run a command in it instead", INITS.join(", "))
}

/// PID 1's one duty when there is no init: the children of the dead. Without the daemon there is no root: that
/// ends the machine, whoever else still runs.
fn reap_for_ever(daemon: Pid) -> ! {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((child, _))) if child == daemon => power_off(),
            Err(rustix::io::Errno::CHILD) => power_off(),
            Ok(_) | Err(_) => (),
        }
    }
}
