//! From an image to a running VM and, with a command, to its exit status.
//!
//! A launch writes nothing to the host's disk but a log of the console: kernel and initramfs are cached, the
//! root streams from the store, changes live in the guest's memory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lazyroot_proto::boot::UPPER_DISK;
use lazyroot_proto::exec::{Exec, ExecError};
use lazyroot_proto::settings::{self, MAX_SETTINGS, Settings};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::home::Home;
use crate::serve::report::{Kind, Reporter};
use crate::serve::{
    BootHistory, BoxStream, Catalog, Endpoint, GuestAgent, Listener, ProfileUse, ServedImage, Server, Snapshot,
};
use crate::store::{Image, Pin, Store, Traffic};
use crate::text::printable;
use crate::vm::guest::exec::{self, Input, Outcome, SavedTerminal, Status, Unattended};
use crate::vm::guest::ports::PortForward;
use crate::vm::guest::readiness::Wait;
use crate::vm::hypervisor::console::ConsoleLog;
use crate::vm::hypervisor::machine::{
    Access, Console, Disk, GuestListener, Hypervisor, Machine, MachineSpec, Network, Share,
};
use crate::vm::hypervisor::registry;
use crate::vm::instance::control::{Control, Order, OrderKind};
use crate::vm::instance::port_map::PortMap;
use crate::vm::instance::status::{Phase, Watch};
use crate::vm::instance::volume::Volume;
use crate::vm::instance::{self, Defaults, End, Instance, Record, Vms};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::bundle::{Kernel, Kernels};
use crate::vm::kernel::import::KernelSource;
use crate::vm::kernel::initramfs;
use crate::vm::kernel::modules::Feature;
use crate::vm::log::{self, Log};

/// How long a guest may take from its start to its agent's first word. An emulated CPU needs about five seconds
/// on an idle machine; ten times that on a busy one is still a VM that comes up.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// How long it may take from there until it is ready: an emulated systemd on a busy machine takes a minute.
const READY_DEADLINE: Duration = Duration::from_secs(300);

/// How long after a guest's streams its hypervisor may end, for that to be the reason.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long a guest whose command has ended may take to write what it kept in memory to its disk.
const FLUSH_DEADLINE: Duration = Duration::from_secs(20);

/// What an x86 kernel takes of its command line, in bytes (COMMAND_LINE_SIZE, less the final NUL); it cuts off the
/// rest without a word.
const MAX_CMDLINE: usize = 2047;

/// In a VM's folder, what its command writes, if nobody sits at it.
pub const OUTPUT_LOG: &str = "output.log";

/// How long a session may outlive its hypervisor: it ends with its connection, and then writes two small files.
const LAST_READS: Duration = Duration::from_secs(2);

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
    /// BootHistory in MiB.
    pub memory_mib: u32,
    /// The VM's name; made up if `None`.
    pub name: Option<String>,
    /// More words for the kernel command line.
    pub append: Vec<String>,
    /// Which hypervisor and accelerator.
    pub hypervisor: registry::Choice,
    /// Show the guest's console on standard error while a command runs.
    pub show_console: bool,
    /// Its network; `None` for one in user space if the kernel can.
    pub network: Option<Network>,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<PortMap>,
    /// Folders of the host that the guest sees.
    pub volumes: Vec<Volume>,
    /// systemd credentials, by name.
    pub credentials: Vec<(String, Vec<u8>)>,
    /// systemd units, by file name.
    pub units: Vec<(String, Vec<u8>)>,
    /// When it counts as ready, if it runs the image's init in the background.
    pub wait: Wait,
    /// What is done with the image's boot profile.
    pub profile: ProfileUse,
    /// End the VM after this long; it has no terminal then.
    pub at_most: Option<Duration>,
    /// A disk for what the guest writes, which formats it if it is blank; memory if `None`.
    pub disk: Option<PathBuf>,
}

/// How a launch went.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// How the guest's instructions ran: `kvm`, `tcg` or `vz`.
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
    /// What came from upstreams, if there are any.
    pub upstream: Option<Traffic>,
}

/// Boots, runs, and cleans up. No report if a signal ended the launch before the VM was up.
///
/// # Errors
/// If the VM cannot be started or does not come up; the error carries the guest's own words where there are any.
pub async fn run(home: &Home, store: &Store, launch: Launch, launched: Instant) -> Result<(Status, Option<Report>)> {
    // What a shell did before it became this process, and its children, is no part of the launch.
    let written_before = disk_bytes_written(&[]);
    let interactive = launch.command.is_none() && launch.at_most.is_none();
    // QEMU makes the terminal raw for the guest's console; killed, it does not put it back.
    let _terminal = if interactive { SavedTerminal::save() } else { None };
    let mut vm = tokio::select! {
        // First, so that from here on a signal ends the launch where it waits, and nothing half-made is left.
        biased;
        status = exec::ended_by_signal() => return Ok((status?, None)),
        vm = Vm::start(home, store, &launch, if interactive { Sitter::Us } else { Sitter::Nobody }, launched) => vm?,
    };
    let follower = vm.console.as_ref().filter(|_| launch.show_console).map(|console| Follower::start(console.path()));
    let at_most = launch.at_most;
    let work = async {
        match launch.command {
            None => vm.run_console().await,
            Some(exec) => vm.run_command(exec).await,
        }
    };
    let outcome = match at_most {
        None => work.await,
        Some(at_most) => tokio::time::timeout(at_most, work).await.unwrap_or(Ok(Status(0))),
    };
    let disk_bytes_written = disk_bytes_written(&vm.machine.pids()).saturating_sub(written_before);
    vm.end_machine().await;
    drop(follower);
    let status = vm.explain(outcome)?;
    let timings = vm.watch.timings();
    let report = Report {
        accelerator: vm.accelerator.to_owned(),
        hypervisor_started: timings.hypervisor_started,
        guest_init: timings.guest_init,
        command_started: timings.ready,
        guest_clock_mounted: timings.guest_clock_mounted,
        served: vm.server.totals().snapshot(),
        image_bytes: launch.image.index.total_bytes(),
        image_objects: launch.image.index.objects(),
        disk_bytes_written,
        upstream: store.remote_images().map(|remote| remote.traffic()),
    };
    Ok((status, Some(report)))
}

/// Boots a VM that goes on without a terminal. Once it is ready `up` is called with its name and folder, and lets go of
/// whoever waited; the future then lasts as long as the VM. A command that cannot be run gives its status, and why.
///
/// # Errors
/// If the VM cannot be started or does not become ready; what happens later is for [`Found`](crate::vm::instance::Found).
pub async fn run_detached(
    home: &Home,
    store: &Store,
    launch: Launch,
    keep: Keep,
    launched: Instant,
    up: impl FnOnce(&str, &Path) -> Result<()>,
) -> Result<Outcome> {
    let mut vm = tokio::select! {
        biased;
        status = exec::ended_by_signal() => return Ok(Outcome::Ended(status?)),
        vm = Vm::start(home, store, &launch, Sitter::Nobody, launched) => vm?,
    };
    let ready = vm.become_ready(launch.command, &launch.wait).await;
    let program = match ready {
        Ok(Begun::Running(program)) => program,
        Ok(Begun::NotStarted(why, text)) => {
            vm.end_machine().await;
            return Ok(Outcome::NotStarted(why, text));
        }
        Err(error) => {
            vm.end_machine().await;
            return vm.explain(Err(error)).map(Outcome::Ended);
        }
    };
    vm.watch.ready();
    if keep == Keep::UntilRemoved {
        vm.instance.keep()?;
    }
    up(vm.instance.name(), vm.instance.dir())?;
    let outcome = match program {
        None => vm.run_console().await,
        Some((program, mut log)) => {
            let work = async {
                tokio::select! {
                    status = program.log(&mut log) => status,
                    status = exec::ended_by_signal() => status,
                }
            };
            vm.drive(work).await.and_then(Driven::status)
        }
    };
    vm.end_machine().await;
    let (status, reason) = match vm.explain(outcome) {
        Ok(status) => (Some(status.0), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let end = End { status, reason, at: instance::now(), timings: vm.watch.timings() };
    if let Err(error) = vm.instance.end(&end) {
        // It is over all the same.
        tracing::warn!("{error:#}");
    }
    if keep == Keep::UntilRemoved {
        Reporter::new(vm.server.clone(), Kind::Vm, vm.instance.name()).keep(vm.instance.dir())?;
    }
    Ok(Outcome::Ended(Status(status.unwrap_or_default())))
}

/// Boots a VM in which nothing runs, neither the image's init nor a command, does `work` with its folder, and ends it.
///
/// # Errors
/// If it does not come up, or `work` fails.
pub async fn run_around<T, W: Future<Output = Result<T>>>(
    home: &Home,
    store: &Store,
    mut launch: Launch,
    launched: Instant,
    work: impl FnOnce(PathBuf) -> W,
) -> Result<T> {
    // Its agent is there for commands; none is run.
    launch.command = Some(Exec::default());
    let interrupted = |status: Status| anyhow!("ended by a signal ({})", status.0);
    let mut vm = tokio::select! {
        biased;
        status = exec::ended_by_signal() => return Err(interrupted(status?)),
        vm = Vm::start(home, store, &launch, Sitter::Nobody, launched) => vm?,
    };
    let (hub, watch, dir) = (vm.hub.clone(), vm.watch.clone(), vm.instance.dir().to_owned());
    let work = async {
        tokio::time::timeout(BOOT_DEADLINE, hub.connected()).await.map_err(|_| too_late())?;
        watch.ready();
        tokio::select! {
            biased;
            status = exec::ended_by_signal() => Err(interrupted(status?)),
            done = work(dir) => done,
        }
    };
    let driven = vm.drive(work).await;
    vm.end_machine().await;
    match driven {
        Ok(Driven::Done(done)) => done,
        Ok(Driven::Ended | Driven::Killed) => bail!("the VM ended too early"),
        Err(error) => match vm.explain(Err(error)) {
            Err(error) => Err(error),
            Ok(_) => bail!("the VM ended too early"),
        },
    }
}

/// What becomes of a VM's folder when the VM has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It stays, with logs and status, until somebody removes it.
    UntilRemoved,
    /// It goes too.
    No,
}

/// Who sits at the VM's console.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sitter {
    Us,
    Nobody,
}

/// A VM that is ready.
enum Begun {
    /// With its command and where that writes to, if it has one.
    Running(Option<(Unattended<BoxStream>, Log)>),
    NotStarted(ExecError, String),
}

/// How it went on while a VM was looked after.
enum Driven<T> {
    /// The work was done.
    Done(T),
    /// The VM ended, as it was asked to or by itself.
    Ended,
    /// It was asked to end and did not, so it was ended hard.
    Killed,
}

impl Driven<Result<Status>> {
    /// The command's status, or that of a VM that had to be stopped before the command ended.
    fn status(self) -> Result<Status> {
        match self {
            Self::Done(status) => status,
            Self::Ended => bail!("the VM ended before the command did"),
            Self::Killed => Ok(Status::KILLED),
        }
    }
}

/// A started VM and all that serves it. Dropping it ends the hypervisor, the server and its sockets, and removes
/// the VM's folder, in that order.
struct Vm {
    machine: Box<dyn Machine>,
    _serving: JoinSet<()>,
    server: Arc<Server>,
    hub: Arc<GuestAgent>,
    watch: Arc<Watch>,
    orders: mpsc::Receiver<Order>,
    /// When its patience with a guest that was asked to end is over.
    kill_at: Option<tokio::time::Instant>,
    console: Option<ConsoleLog>,
    accelerator: &'static str,
    instance: Instance,
    _pin: Option<Pin>,
}

impl Vm {
    async fn start(home: &Home, store: &Store, launch: &Launch, sitter: Sitter, launched: Instant) -> Result<Self> {
        let kernel = choose_kernel(home, store, launch)?;
        let network = choose_network(launch, &kernel);
        let shares = shares(&launch.volumes);
        let mut features = Vec::new();
        features.extend((network != Network::None).then_some(Feature::Network));
        features.extend((!shares.is_empty()).then_some(Feature::Share));
        features.extend(launch.disk.is_some().then_some(Feature::Disk));
        let initramfs = initramfs::build(home, &kernel, &initramfs::guest_init_path(kernel.bundle.arch)?, &features)?;
        let hypervisor = registry::make(home, launch.hypervisor, &kernel, &initramfs).await?;
        let accelerator = hypervisor.acceleration();
        // First of all that others can see: bound, a port is ours.
        let ports = launch.ports.iter().cloned().map(PortForward::bind).collect::<Result<Vec<_>>>()?;
        let mut record = record(launch, &kernel);
        record.ports = ports.iter().map(|port| port.map.clone()).collect();
        let instance = Vms::open(home)?.create(record)?;
        let pin = store.pin(&launch.image, &format!("VM {}", instance.name()))?;
        let vsock_port = hypervisor.vsock_port();
        let (console, console_log) = match sitter {
            Sitter::Us => (Console::Stdio, None),
            Sitter::Nobody => hypervisor.console_log(instance.dir()).map(|(console, log)| (console, Some(log)))?,
        };
        let settings = settings(launch, &shares, hypervisor.network_settings(network))?;
        let spec = MachineSpec {
            name: instance.name().to_owned(),
            cpus: launch.cpus,
            memory_mib: launch.memory_mib,
            kernel: hypervisor.kernel_file(&kernel)?,
            initramfs,
            cmdline: cmdline(hypervisor.as_ref(), launch, &settings, instance.name(), vsock_port)?,
            dir: instance.dir().to_owned(),
            console,
            vsock_port,
            disks: launch
                .disk
                .iter()
                .map(|path| Disk { path: path.clone(), access: Access::ReadWrite, id: UPPER_DISK.into() })
                .collect(),
            shares: shares.clone(),
            network,
        };
        let (endpoint, guest_socket) = match hypervisor.vsock(&spec) {
            GuestListener::Unix(path) => (Endpoint::Unix(path.clone()), Some(path)),
            GuestListener::Vsock { port, cid } => (Endpoint::VsockFrom { port, cid }, None),
        };
        let listener = Listener::bind(&endpoint)?;
        let control_listener = Control::listen(instance.dir())?;
        let see_listener = Reporter::listen(instance.dir())?;
        let hub = Arc::new(GuestAgent::with_settings(&settings));
        let (image, source) = (launch.image.clone(), store.source());
        let memory = BootHistory::new(store, &launch.image.id, launch.profile);
        let catalog = Catalog::on_demand(image.id, move || {
            Ok(ServedImage::open(&image, source.clone())?.with_history(memory.clone()))
        });
        let watch = Arc::<OnceLock<Arc<Watch>>>::default();
        let on_event = {
            let watch = watch.clone();
            move |event| {
                if let Some(watch) = watch.get() {
                    watch.hear(event);
                }
            }
        };
        let server = Arc::new(Server::new(catalog, Some(hub.clone()), on_event));
        let stats = server.clone();
        let watch = watch.get_or_init(|| Watch::new(move || stats.totals().snapshot())).clone();
        let (control, orders) = Control::new(hub.clone(), watch.clone());
        let mut serving = JoinSet::new();
        serving.spawn(server.clone().serve(listener));
        serving.spawn(control.serve(control_listener));
        for port in ports {
            serving.spawn(port.serve(hub.clone()));
        }
        serving.spawn(Reporter::new(server.clone(), Kind::Vm, instance.name()).serve(see_listener));
        watch.starting(accelerator, guest_socket, launched);
        let machine = hypervisor.start(&spec).await?;
        watch.started(machine.pids());
        Ok(Self {
            machine,
            _serving: serving,
            server,
            hub,
            watch,
            orders,
            kill_at: None,
            console: console_log,
            accelerator,
            instance,
            _pin: pin,
        })
    }

    /// Looks after the VM while `work` is done.
    ///
    /// # Errors
    /// If the hypervisor fails, or the guest says that it cannot boot.
    async fn drive<T>(&mut self, work: impl Future<Output = T>) -> Result<Driven<T>> {
        tokio::pin!(work);
        loop {
            let kill_at = self.kill_at;
            let patience = async {
                match kill_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let order = tokio::select! {
                biased;
                done = &mut work => return Ok(Driven::Done(done)),
                ended = self.machine.wait() => return ended.map(|()| Driven::Ended),
                // The caller knows the reason.
                () = self.watch.gave_up() => bail!("the guest gave up"),
                () = patience => return Ok(Driven::Killed),
                Some(order) = self.orders.recv() => order,
            };
            let outcome = self.obey(order.what).await;
            // Whoever ordered may be gone.
            let _ = order.done.send(outcome);
        }
    }

    async fn obey(&mut self, what: OrderKind) -> Result<()> {
        match what {
            OrderKind::Pause => {
                self.machine.pause().await?;
                self.watch.set_phase(Phase::Paused);
            }
            OrderKind::Resume => {
                self.machine.resume().await?;
                self.watch.set_phase(Phase::Running);
            }
            OrderKind::Stop(within) => {
                if self.watch.phase() == Phase::Paused {
                    // A halted guest cannot end by itself; if it cannot go on either, patience ends it.
                    let _ = self.machine.resume().await;
                }
                self.watch.set_phase(Phase::Stopping);
                self.kill_at = Some(tokio::time::Instant::now() + within);
                // Without an agent or a power button there is nobody to ask.
                if self.hub.power_off().await.is_err() && self.machine.power_button().await.is_err() {
                    self.kill_at = Some(tokio::time::Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Until the VM ends by itself, or by a signal to us.
    async fn run_console(&mut self) -> Result<Status> {
        match self.drive(exec::ended_by_signal()).await? {
            Driven::Done(status) => status,
            Driven::Killed => Ok(Status::KILLED),
            Driven::Ended => {
                let mounted = self.watch.timings().guest_clock_mounted.is_some();
                ensure!(mounted, "the VM ended before it had mounted its root");
                Ok(Status(0))
            }
        }
    }

    /// Waits for the guest's agent, and has it run the command.
    async fn run_command(&mut self, exec: Exec) -> Result<Status> {
        let hub = self.hub.clone();
        let agent = async {
            tokio::select! {
                stream = hub.open_stream() => Ok(Ok(stream?)),
                () = tokio::time::sleep(BOOT_DEADLINE) => Err(too_late()),
                status = exec::ended_by_signal() => Ok(Err(status?)),
            }
        };
        let stream = match self.drive(agent).await? {
            Driven::Done(Ok(Ok(stream))) => stream,
            Driven::Done(Ok(Err(status))) => return Ok(status),
            Driven::Done(Err(error)) => return Err(error),
            Driven::Ended => bail!("the VM ended before the command could run"),
            Driven::Killed => return Ok(Status::KILLED),
        };
        let watch = self.watch.clone();
        let run = exec::run(stream, exec, Input::Ours, || watch.ready());
        let driven = self.drive(async { run.await.map(Outcome::report) }).await?;
        // A hypervisor that dies takes the guest's streams along first: its own end says more.
        if let Driven::Done(Err(_)) = &driven
            && let Ok(ended) = tokio::time::timeout(LAST_WORDS, self.machine.wait()).await
        {
            ended?;
        }
        driven.status()
    }

    /// Waits until the guest's agent is there, and the command runs, if there is one.
    async fn become_ready(&mut self, command: Option<Exec>, wait: &Wait) -> Result<Begun> {
        let (hub, watch, dir) = (self.hub.clone(), self.watch.clone(), self.instance.dir().to_owned());
        let log = dir.join(OUTPUT_LOG);
        let begin = async {
            tokio::time::timeout(BOOT_DEADLINE, hub.connected()).await.map_err(|_| too_late())?;
            let Some(exec) = command else {
                wait.wait(&dir, &watch).await?;
                return Ok(Begun::Running(None));
            };
            let log = Log::create(&log).context("cannot make the command's log")?;
            match Unattended::start(hub.open_stream().await?, exec).await? {
                Ok(program) => Ok(Begun::Running(Some((program, log)))),
                Err((why, text)) => Ok(Begun::NotStarted(why, text)),
            }
        };
        let begin = async {
            tokio::select! {
                begun = begin => begun,
                () = tokio::time::sleep(READY_DEADLINE) => {
                    bail!("it was not ready within {} s; --wait says what for", READY_DEADLINE.as_secs())
                }
                status = exec::ended_by_signal() => bail!("ended by signal {}", status?.0),
            }
        };
        match self.drive(begin).await? {
            Driven::Done(begun) => begun,
            Driven::Ended => bail!("the VM ended before it was ready"),
            Driven::Killed => bail!("it was stopped before it was ready"),
        }
    }

    /// Ends the hypervisor, and takes the rest of what the guest wrote to its console and of what it had read.
    async fn end_machine(&mut self) {
        if self.instance.record().persistent {
            // What was written is to be on the disk before the end: the guest is asked, unless it was already.
            let now = tokio::time::Instant::now();
            let deadline = match self.kill_at {
                Some(at) => at,
                None if self.hub.power_off().await.is_ok() => now + FLUSH_DEADLINE,
                None => now,
            };
            // Fails if it has ended by itself.
            let _ = tokio::time::timeout_at(deadline, self.machine.wait()).await;
        }
        self.machine.kill().await;
        let _ = tokio::time::timeout(LAST_READS, self.server.idle()).await;
        if let Some(console) = &mut self.console {
            console.finish().await;
        }
    }

    /// The outcome with the guest's own words, if it failed and there are any.
    fn explain(&self, outcome: Result<Status>) -> Result<Status> {
        match (self.watch.fatal(), outcome, &self.console) {
            (Some(why), ..) => bail!("the guest could not boot: {why}"),
            (None, Err(error), Some(console)) => Err(with_console(&error, console.path())),
            (None, outcome, _) => outcome,
        }
    }
}

fn too_late() -> anyhow::Error {
    anyhow!("the guest did not come up within {} s", BOOT_DEADLINE.as_secs())
}

/// The network that was asked for; else the usual one, if the kernel can.
fn choose_network(launch: &Launch, kernel: &Kernel) -> Network {
    match launch.network {
        Some(network) => network,
        None if kernel.has(Feature::Network) => Network::User,
        None => {
            let release = &kernel.bundle.release;
            tracing::warn!("kernel {release} has no modules for a network, so there is none: import the kernel again");
            Network::None
        }
    }
}

/// Each folder with the name that the guest mounts it by.
fn shares(volumes: &[Volume]) -> Vec<Share> {
    let share = |(number, volume): (usize, &Volume)| Share { dir: volume.host.clone(), tag: format!("volume{number}") };
    volumes.iter().enumerate().map(share).collect()
}

/// What the guest is told as it boots.
fn settings(launch: &Launch, shares: &[Share], network: Option<settings::Network>) -> Result<Settings> {
    let files = |files: &[(String, Vec<u8>)]| {
        files.iter().map(|(name, content)| (name.clone().into_bytes(), content.clone())).collect()
    };
    let share = |(share, volume): (&Share, &Volume)| settings::Share {
        tag: share.tag.clone().into(),
        path: volume.guest.clone().into(),
        read_only: volume.read_only,
    };
    let settings = Settings {
        credentials: files(&launch.credentials),
        units: files(&launch.units),
        network,
        shares: shares.iter().zip(&launch.volumes).map(share).collect(),
    };
    let bytes = settings.encode().len();
    ensure!(bytes <= MAX_SETTINGS, "credentials and units have {bytes} bytes: more than {MAX_SETTINGS} do not fit");
    Ok(settings)
}

/// What others learn about the VM.
fn record(launch: &Launch, kernel: &Kernel) -> Record {
    let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
    let config = launch.image.config.clone().unwrap_or_default();
    Record {
        name: launch.name.clone().unwrap_or_default(),
        image: launch.image.id.to_string(),
        image_name: launch.image.name.clone(),
        command: launch.command.iter().flat_map(|exec| exec.argv.iter().map(text)).collect(),
        kernel: kernel.bundle.release.clone(),
        cpus: launch.cpus,
        memory_mib: launch.memory_mib,
        defaults: Defaults { env: config.env, workdir: config.working_dir, user: config.user },
        volumes: launch.volumes.clone(),
        persistent: launch.disk.is_some(),
        ..Record::default()
    }
}

/// The asked-for bundle, the image's own kernel, or the newest bundle for the image's architecture.
fn choose_kernel(home: &Home, store: &Store, launch: &Launch) -> Result<Kernel> {
    let kernels = Kernels::open(home)?;
    if launch.kernel.is_none()
        && let Some(kernel) = kernels.of_image(store, &launch.image)?
    {
        return Ok(kernel);
    }
    let arch = Arch::of_image(home, &launch.image)?;
    let Some(release) = &launch.kernel else {
        return match kernels.newest(arch) {
            // A Mac has no Linux kernel but the one in podman's machine, where the image most likely is from.
            Err(none) if cfg!(target_os = "macos") && arch == Arch::HOST => {
                let imported = kernels.import(&KernelSource::PodmanMachine(None), || unreachable!("no image is read"));
                imported.map_err(|error| none.context(format!("{error:#}")))
            }
            found => found,
        };
    };
    let kernel = kernels.get(release)?;
    let of_kernel = kernel.bundle.arch;
    ensure!(of_kernel == arch, "kernel {release} is for {of_kernel}, and the image for {arch}");
    Ok(kernel)
}

fn cmdline(
    hypervisor: &dyn Hypervisor,
    launch: &Launch,
    settings: &Settings,
    name: &str,
    vsock_port: u32,
) -> Result<String> {
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
    if *settings != Settings::default() {
        words.push("lazyroot.settings".to_owned());
    }
    if launch.disk.is_some() {
        words.push("lazyroot.upper=disk".to_owned());
    }
    if launch.command.is_none() {
        // systemd would take it from the image, where all VMs find the same.
        words.push(format!("systemd.hostname={name}"));
    }
    words.extend(launch.append.iter().cloned());
    let line = words.join(" ");
    ensure!(line.len() <= MAX_CMDLINE, "the kernel command line is longer than {MAX_CMDLINE} bytes: shorten --append");
    Ok(line)
}

/// An error with the last lines of the guest's console.
fn with_console(error: &anyhow::Error, log: &Path) -> anyhow::Error {
    let text = log::read(log).unwrap_or_default();
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

/// Copies the console's log to standard error, as it grows; ends with all of it when dropped.
struct Follower {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Follower {
    fn start(log: &Path) -> Self {
        let over = Arc::<AtomicBool>::default();
        let (log, until) = (log.to_owned(), over.clone());
        let thread = std::thread::spawn(move || {
            // Fails if nobody reads it.
            let _ = log::follow(&log, |data| std::io::stderr().write_all(data), || until.load(Ordering::Acquire));
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
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
        let upstream = self.upstream.map(|traffic| {
            let Traffic { requests, bytes, damaged, .. } = traffic;
            format!("\nfrom upstreams            {:.1} MiB, {requests} requests, {damaged} damaged", mib(bytes))
        });
        format!(
            "hypervisor started after  {:.0} ms ({})\n\
             guest init after          {}\n\
             command after             {}\n\
             bytes fetched             {:.1} MiB of {:.1} MiB in the image ({share:.1} %)\n\
             objects fetched           {} of {}\n\
             requests                  {}\n\
             written to host disk      {} KiB{}",
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
            upstream.unwrap_or_default(),
        )
    }
}
