//! From an image to a running VM and, with a command, to its exit status.
//!
//! A launch writes nothing to the host's disk but a log of the console: kernel and initramfs are cached, the
//! root streams from the store, changes live in the guest's memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use lazyroot_proto::exec::Exec;
use lazyroot_proto::frame::EventKind;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::accel::{self, Accelerator};
use super::exec::{self, SavedTerminal, Status};
use super::hypervisor::{Console, GuestListener, Hypervisor, Machine, MachineSpec};
use super::instance::Instance;
use super::kernel::{Kernel, Kernels};
use super::{initramfs, qemu};
use crate::home::Home;
use crate::serve::{Catalog, Endpoint, Event, Hub, Listener, ServedImage, Server, Snapshot, printable};
use crate::store::{Image, Store};

/// How long a guest may take from its start to its agent's first word. An emulated CPU needs about five seconds
/// on an idle machine; ten times that on a busy one is still a VM that comes up.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// What an x86 kernel takes of its command line, in bytes (COMMAND_LINE_SIZE, less the final NUL); it cuts off the
/// rest without a word.
const MAX_CMDLINE: usize = 2047;

/// How many of the console's last lines an error shows.
const CONSOLE_LINES: usize = 15;

/// What to launch.
pub struct Launch {
    /// The image to boot into.
    pub image: Image,
    /// What to run; `None` boots the image's own init on this terminal.
    pub command: Option<Exec>,
    /// Release of the kernel bundle, or `None` for the image's own kernel, else the newest bundle.
    pub kernel: Option<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The VM's name; made up if `None`.
    pub name: Option<String>,
    /// More words for the kernel command line.
    pub append: Vec<String>,
    /// Which hypervisor and accelerator.
    pub hypervisor: accel::Choice,
    /// Show the guest's console on standard error while a command runs.
    pub show_console: bool,
}

/// How a launch went.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// From the launch to the hypervisor's start.
    pub hypervisor_started: Duration,
    /// From the hypervisor's start until guest-init reached the host.
    pub guest_init: Option<Duration>,
    /// From the hypervisor's start until the command ran.
    pub command_started: Option<Duration>,
    /// The guest's own clock when the image was mounted, since its kernel started.
    pub guest_clock_mounted: Option<Duration>,
    /// What was served.
    pub served: Snapshot,
    /// Bytes of all the image's objects.
    pub image_bytes: u64,
    /// The image's objects.
    pub image_objects: u64,
    /// Bytes that this launch caused to be written to the host's disks, all its processes together.
    pub disk_bytes_written: u64,
}

/// What the guest has reported.
#[derive(Default)]
struct Milestones {
    init: Option<Instant>,
    mounted_at: Option<u64>,
    fatal: Option<String>,
}

/// Boots, runs, and cleans up. No report if a signal ended the launch before the VM was up.
///
/// # Errors
/// If the VM cannot be started or does not come up; the error carries the guest's own words where there are any.
pub async fn run(home: &Home, store: &Store, launch: Launch, launched: Instant) -> Result<(Status, Option<Report>)> {
    // What a shell did before it became this process, and its children, is no part of the launch.
    let written_before = disk_bytes_written(&[]);
    let interactive = launch.command.is_none();
    // QEMU makes the terminal raw for the guest's console; killed, it does not put it back.
    let _terminal = if interactive { SavedTerminal::save() } else { None };
    let mut vm = tokio::select! {
        // First, so that from here on a signal ends the launch where it waits, and nothing half-made is left.
        biased;
        status = exec::ended_by_signal() => return Ok((status?, None)),
        vm = Vm::start(home, store, &launch) => vm?,
    };
    let follower = launch.show_console.then(|| tokio::spawn(follow(vm.console_log())));
    let mut command_started = None;
    let outcome = match launch.command {
        None => tokio::select! {
            ended = vm.machine.wait() => ended.and_then(|()| vm.was_up()).map(|()| Status(0)),
            status = exec::ended_by_signal() => status,
        },
        Some(exec) => {
            let started = vm.started;
            vm.run_command(exec, || command_started = Some(started.elapsed())).await
        }
    };
    let disk_bytes_written = disk_bytes_written(&vm.machine.pids()).saturating_sub(written_before);
    vm.machine.kill().await;
    if let Some(follower) = follower {
        follower.abort();
    }
    let milestones = vm.milestones.lock().expect("no panic under the lock");
    let status = match (outcome, &milestones.fatal) {
        (_, Some(why)) => bail!("the guest could not boot: {why}"),
        (Err(error), None) if !interactive => return Err(with_console(&error, &vm.console_log())),
        (outcome, None) => outcome?,
    };
    let report = Report {
        accelerator: vm.accelerator.to_string(),
        hypervisor_started: vm.started - launched,
        guest_init: milestones.init.map(|init| init - vm.started),
        command_started,
        guest_clock_mounted: milestones.mounted_at.map(Duration::from_nanos),
        served: vm.server.stats().snapshot(),
        image_bytes: launch.image.index.total_bytes(),
        image_objects: launch.image.index.entries().len() as u64,
        disk_bytes_written,
    };
    Ok((status, Some(report)))
}

/// A started VM and all that serves it. Dropping it ends the hypervisor, the server and its sockets, and removes
/// the VM's folder, in that order.
struct Vm {
    machine: Box<dyn Machine>,
    _serving: JoinSet<()>,
    server: Arc<Server>,
    hub: Arc<Hub>,
    milestones: Arc<Mutex<Milestones>>,
    failed: Arc<Notify>,
    accelerator: Accelerator,
    started: Instant,
    instance: Instance,
}

impl Vm {
    async fn start(home: &Home, store: &Store, launch: &Launch) -> Result<Self> {
        let kernel = choose_kernel(home, store, launch)?;
        let initramfs = initramfs::build(home, &kernel, &initramfs::guest_init_path()?)?;
        let accelerator = accel::choose(home, &kernel, &initramfs, launch.hypervisor).await?;
        let hypervisor = qemu::Qemu::new(home, accelerator)?;
        let instance = Instance::create(home, launch.name.as_deref(), &launch.image)?;
        let vsock_port = hypervisor.vsock_port();
        let console = match launch.command {
            None => Console::Stdio,
            Some(_) => Console::File(console_log(&instance)),
        };
        let spec = MachineSpec {
            name: instance.name().to_owned(),
            cpus: launch.cpus,
            memory_mib: launch.memory_mib,
            kernel: kernel.boot_file(),
            initramfs,
            cmdline: cmdline(&hypervisor, launch, instance.name(), vsock_port)?,
            dir: instance.dir().to_owned(),
            console,
            vsock_port,
        };
        let listener = Listener::bind(&match hypervisor.vsock(&spec) {
            GuestListener::Unix(path) => Endpoint::Unix(path),
            GuestListener::Vsock { port, cid } => Endpoint::VsockFrom { port, cid },
        })?;
        let (hub, milestones, failed) =
            (Arc::<Hub>::default(), Arc::<Mutex<Milestones>>::default(), Arc::<Notify>::default());
        let served = ServedImage::open(&launch.image, store.source())?;
        let on_event = {
            let (milestones, failed) = (milestones.clone(), failed.clone());
            move |event| hear(event, &milestones, &failed)
        };
        let server = Arc::new(Server::new(Catalog::of([served]), Some(hub.clone()), on_event));
        let mut serving = JoinSet::new();
        serving.spawn(server.clone().serve(listener));
        let started = Instant::now();
        let machine = hypervisor.start(&spec).await?;
        Ok(Self { machine, _serving: serving, server, hub, milestones, failed, accelerator, started, instance })
    }

    fn console_log(&self) -> PathBuf {
        console_log(&self.instance)
    }

    /// Whether the image's root was mounted at all.
    fn was_up(&self) -> Result<()> {
        let mounted = self.milestones.lock().expect("no panic under the lock").mounted_at.is_some();
        ensure!(mounted, "the VM ended before it had mounted its root");
        Ok(())
    }

    /// Waits for the guest's agent, and has it run the command.
    async fn run_command(&mut self, exec: Exec, begun: impl FnOnce()) -> Result<Status> {
        let stream = tokio::select! {
            stream = self.hub.open_stream() => stream?,
            // The caller knows the reason.
            () = self.failed.notified() => bail!("the guest gave up"),
            ended = self.machine.wait() => {
                ended?;
                bail!("the VM ended before the command could run");
            }
            () = tokio::time::sleep(BOOT_DEADLINE) => {
                bail!("the guest did not come up within {} s", BOOT_DEADLINE.as_secs())
            }
            status = exec::ended_by_signal() => return status,
        };
        tokio::select! {
            status = exec::run(stream, exec, begun) => status,
            ended = self.machine.wait() => {
                ended?;
                Err(anyhow!("the VM ended before the command did"))
            }
        }
    }
}

fn console_log(instance: &Instance) -> PathBuf {
    instance.dir().join("console.log")
}

/// The asked-for bundle, the image's own kernel, or the newest bundle.
fn choose_kernel(home: &Home, store: &Store, launch: &Launch) -> Result<Kernel> {
    let kernels = Kernels::open(home)?;
    if launch.kernel.is_none()
        && let Some(kernel) = kernels.of_image(store, &launch.image)?
    {
        return Ok(kernel);
    }
    kernels.get(launch.kernel.as_deref())
}

fn cmdline(hypervisor: &dyn Hypervisor, launch: &Launch, name: &str, vsock_port: u32) -> Result<String> {
    let mode = if launch.command.is_some() { "agent" } else { "init" };
    let mut words = vec![
        format!("console={}", hypervisor.console_device()),
        // A guest that panics is over: reboot at once, which the hypervisor turns into an exit.
        "panic=-1".to_owned(),
        hypervisor.cmdline(),
        format!("lazyroot.manifest={}", launch.image.id),
        format!("lazyroot.index={}", launch.image.index.id()),
        format!("lazyroot.port={vsock_port}"),
        format!("lazyroot.mode={mode}"),
        format!("lazyroot.hostname={name}"),
    ];
    words.extend(launch.append.iter().cloned());
    let line = words.join(" ");
    ensure!(line.len() <= MAX_CMDLINE, "the kernel command line is longer than {MAX_CMDLINE} bytes: shorten --append");
    Ok(line)
}

/// Takes down what the guest reports, and tells the user what is wrong.
fn hear(event: Event, milestones: &Mutex<Milestones>, failed: &Notify) {
    if event.kind == EventKind::Warning {
        eprintln!("lazyroot: the guest reports: {}", event.text);
        return;
    }
    let mut milestones = milestones.lock().expect("no panic under the lock");
    match event.kind {
        EventKind::Init => milestones.init = Some(Instant::now()),
        EventKind::Mounted => milestones.mounted_at = Some(event.at),
        EventKind::Started | EventKind::Warning => (),
        // Of a guest that is up it is no more than a word: its programs may say it too.
        EventKind::Fatal if milestones.mounted_at.is_some() => (),
        EventKind::Fatal => {
            milestones.fatal = Some(event.text);
            failed.notify_one();
        }
    }
}

/// An error with the last lines of the guest's console.
fn with_console(error: &anyhow::Error, log: &Path) -> anyhow::Error {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    if last.is_empty() {
        return anyhow!("{error:#}; the guest said nothing on its console");
    }
    // Escape codes of a guest must not reach the user's terminal.
    let last: Vec<String> = last.iter().map(|line| printable(line.trim_end())).collect();
    anyhow!("{error:#}; the console's last lines:\n  {}", last.join("\n  "))
}

/// Copies a growing file to standard error.
async fn follow(path: PathBuf) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// Often enough for a person who watches.
    const EVERY: Duration = Duration::from_millis(50);
    let mut file = loop {
        match tokio::fs::File::open(&path).await {
            Ok(file) => break file,
            Err(_) => tokio::time::sleep(EVERY).await,
        }
    };
    let mut buffer = [0; 4096];
    while let Ok(len) = file.read(&mut buffer).await {
        if len == 0 {
            tokio::time::sleep(EVERY).await;
        } else if tokio::io::stderr().write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// What this process and `others` caused to be written to disks, in bytes, as far as the system says
/// (`write_bytes` of proc_pid_io(5)).
fn disk_bytes_written(others: &[u32]) -> u64 {
    let of = |pid: &str| {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse::<u64>().ok()
    };
    let others = others.iter().filter_map(|pid| of(&pid.to_string()));
    of("self").into_iter().chain(others).sum()
}

impl Report {
    /// The report for people.
    pub fn lines(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let seconds = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{:.2} s", time.as_secs_f64()));
        let share = 100.0 * self.served.bytes as f64 / self.image_bytes.max(1) as f64;
        format!(
            "hypervisor started after  {:.0} ms ({})\n\
             guest init after          {}\n\
             command after             {}\n\
             bytes fetched             {:.1} MiB of {:.1} MiB in the image ({share:.1} %)\n\
             objects fetched           {} of {}\n\
             requests                  {}\n\
             written to host disk      {} KiB",
            self.hypervisor_started.as_secs_f64() * 1e3,
            self.accelerator,
            seconds(self.guest_init),
            seconds(self.command_started),
            mib(self.served.bytes),
            mib(self.image_bytes),
            self.served.objects,
            self.image_objects,
            self.served.requests,
            self.disk_bytes_written >> 10,
        )
    }
}
