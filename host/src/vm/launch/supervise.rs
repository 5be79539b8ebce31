//! A VM from its start to its end: the hypervisor, the server of its guest, and orders from outside.
//!
//! [`Vm`] starts all of it and looks after it while one of the front ends does its work: [`super::foreground`],
//! [`super::detached`] or [`super::idle`].

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Launch;
use super::boot_kernel::choose_kernel;
use super::plan::Plan;
use crate::home::Home;
use crate::serve::report::{Kind, Reporter};
use crate::serve::{BootHistory, Catalog, Endpoint, GuestAgent, Listener, ServedImage, Server};
use crate::store::{Pin, Store};
use crate::text::printable;
use crate::vm::guest::exec::{self, Status};
use crate::vm::guest::ports::PortForward;
use crate::vm::hypervisor::backend::Capabilities;
use crate::vm::hypervisor::console::{Console, ConsoleLog};
use crate::vm::hypervisor::machine::{GuestListener, Machine, MachineSpec};
use crate::vm::hypervisor::registry::BackendChoice;
use crate::vm::instance::control::{Control, Order, OrderKind};
use crate::vm::instance::status::{Phase, Watch};
use crate::vm::instance::{Instance, Vms};
use crate::vm::kernel::initramfs;
use crate::vm::log;

/// How long a guest may take from its start to its agent's first word. An emulated CPU needs about five seconds
/// on an idle machine; ten times that on a busy one is still a VM that comes up.
pub(super) const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// How long a guest whose command has ended may take to write what it kept in memory to its disk.
const FLUSH_DEADLINE: Duration = Duration::from_secs(20);

/// How long a session may outlive its hypervisor: it ends with its connection, and then writes two small files.
const LAST_READS: Duration = Duration::from_secs(2);

/// How many of the console's last lines an error shows.
const CONSOLE_LINES: usize = 15;

/// Who sits at the VM's console.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ConsoleUser {
    /// The terminal of this process.
    Terminal,
    Nobody,
}

/// How it went on while a VM was looked after.
pub(super) enum Supervision<T> {
    /// The work was done.
    Done(T),
    /// The VM ended, as it was asked to or by itself.
    Ended,
    /// It was asked to end and did not, so it was ended hard.
    Killed,
}

impl Supervision<Result<Status>> {
    /// The command's status, or that of a VM that had to be stopped before the command ended.
    pub(super) fn status(self) -> Result<Status> {
        match self {
            Self::Done(status) => status,
            Self::Ended => bail!("the VM ended before the command did"),
            Self::Killed => Ok(Status::KILLED),
        }
    }
}

/// A started VM and all that serves it. Dropping it ends the hypervisor, the server and its sockets, and removes
/// the VM's folder, in that order.
pub(super) struct Vm {
    pub(super) machine: Box<dyn Machine>,
    capabilities: Capabilities,
    _serving: JoinSet<()>,
    pub(super) server: Arc<Server>,
    pub(super) agent: Arc<GuestAgent>,
    pub(super) watch: Arc<Watch>,
    orders: mpsc::Receiver<Order>,
    /// When its patience with a guest that was asked to end is over.
    kill_at: Option<tokio::time::Instant>,
    pub(super) console: Option<ConsoleLog>,
    pub(super) accelerator: &'static str,
    pub(super) instance: Instance,
    _pin: Option<Pin>,
}

impl Vm {
    pub(super) async fn start(
        home: &Home,
        store: &Store,
        launch: &Launch,
        console_user: ConsoleUser,
        launched: Instant,
    ) -> Result<Self> {
        let kernel = choose_kernel(home, store, &launch.image, launch.kernel.as_deref())?;
        let plan = Plan::of(launch, kernel)?;
        let guest_init = initramfs::guest_init_path(plan.kernel.bundle.arch)?;
        let initramfs = initramfs::build(home, &plan.kernel, &guest_init, &plan.features())?;
        let BackendChoice { backend, accelerator } = launch.hypervisor;
        let hypervisor = backend.make(home, &plan.kernel, &initramfs, accelerator).await?;
        let accelerator = hypervisor.acceleration();
        // First of all that others can see: bound, a port is ours.
        let ports = launch.ports.iter().cloned().map(PortForward::bind).collect::<Result<Vec<_>>>()?;
        let mut record = plan.record(launch);
        record.ports = ports.iter().map(|port| port.map.clone()).collect();
        let instance = Vms::open(home)?.create(record)?;
        let pin = store.pin(&launch.image, &format!("VM {}", instance.name()))?;
        let (console, console_log) = match console_user {
            ConsoleUser::Terminal => (Console::Stdio, None),
            ConsoleUser::Nobody => hypervisor.console_log(instance.dir()).map(|(console, log)| (console, Some(log)))?,
        };
        let settings = plan.settings(launch, hypervisor.network_settings(plan.network))?;
        let spec = MachineSpec {
            name: instance.name().to_owned(),
            cpus: launch.cpus,
            memory_mib: launch.memory_mib,
            kernel: plan.kernel.file(plan.needs.kernel),
            initramfs,
            cmdline: plan.cmdline(hypervisor.as_ref(), launch, &settings, instance.name())?,
            dir: instance.dir().to_owned(),
            console,
            vsock_port: hypervisor.vsock_port(),
            disks: plan.disks,
            shares: plan.shares,
            network: plan.network,
        };
        let (endpoint, guest_socket) = match hypervisor.vsock(&spec) {
            GuestListener::Unix(path) => (Endpoint::Unix(path.clone()), Some(path)),
            GuestListener::Vsock { port, cid } => (Endpoint::VsockFrom { port, cid }, None),
        };
        let listener = Listener::bind(&endpoint)?;
        let control_listener = Control::listen(instance.dir())?;
        let see_listener = Reporter::listen(instance.dir())?;
        let agent = Arc::new(GuestAgent::with_settings(&settings));
        let (image, source) = (launch.image.clone(), store.source());
        let history = BootHistory::new(store, &launch.image.id, launch.profile);
        let catalog = Catalog::on_demand(image.id, move || {
            Ok(ServedImage::open(&image, source.clone())?.with_history(history.clone()))
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
        let server = Arc::new(Server::new(catalog, Some(agent.clone()), on_event));
        let stats = server.clone();
        let watch = watch.get_or_init(|| Watch::new(move || stats.totals().snapshot())).clone();
        let (control, orders) = Control::new(agent.clone(), watch.clone());
        let mut serving = JoinSet::new();
        serving.spawn(server.clone().serve(listener));
        serving.spawn(control.serve(control_listener));
        for port in ports {
            serving.spawn(port.serve(agent.clone()));
        }
        serving.spawn(Reporter::new(server.clone(), Kind::Vm, instance.name()).serve(see_listener));
        watch.starting(accelerator, guest_socket, launched);
        let machine = hypervisor.start(&spec).await?;
        watch.started(machine.pids());
        Ok(Self {
            machine,
            capabilities: backend.capabilities(),
            _serving: serving,
            server,
            agent,
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
    pub(super) async fn drive<T>(&mut self, work: impl Future<Output = T>) -> Result<Supervision<T>> {
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
                done = &mut work => return Ok(Supervision::Done(done)),
                ended = self.machine.wait() => return ended.map(|()| Supervision::Ended),
                // The caller knows the reason.
                () = self.watch.gave_up() => bail!("the guest gave up"),
                () = patience => return Ok(Supervision::Killed),
                Some(order) = self.orders.recv() => order,
            };
            let outcome = self.obey(order.what).await;
            // Whoever ordered may be gone.
            let _ = order.done.send(outcome);
        }
    }

    async fn obey(&mut self, what: OrderKind) -> Result<()> {
        match what {
            OrderKind::Pause | OrderKind::Resume if !self.capabilities.pause => {
                bail!("this hypervisor cannot pause a VM")
            }
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
                if self.agent.power_off().await.is_err() && self.machine.power_button().await.is_err() {
                    self.kill_at = Some(tokio::time::Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Until the VM ends by itself, or by a signal to us.
    pub(super) async fn run_console(&mut self) -> Result<Status> {
        match self.drive(exec::ended_by_signal()).await? {
            Supervision::Done(status) => status,
            Supervision::Killed => Ok(Status::KILLED),
            Supervision::Ended => {
                let mounted = self.watch.timings().guest_clock_mounted.is_some();
                ensure!(mounted, "the VM ended before it had mounted its root");
                Ok(Status(0))
            }
        }
    }

    /// Ends the hypervisor, and takes the rest of what the guest wrote to its console and of what it had read.
    pub(super) async fn end_machine(&mut self) {
        if self.instance.record().persistent {
            // What was written is to be on the disk before the end: the guest is asked, unless it was already.
            let now = tokio::time::Instant::now();
            let deadline = match self.kill_at {
                Some(at) => at,
                None if self.agent.power_off().await.is_ok() => now + FLUSH_DEADLINE,
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
    pub(super) fn explain(&self, outcome: Result<Status>) -> Result<Status> {
        match (self.watch.fatal(), outcome, &self.console) {
            (Some(why), ..) => bail!("the guest could not boot: {why}"),
            (None, Err(error), Some(console)) => Err(with_console(&error, console.path())),
            (None, outcome, _) => outcome,
        }
    }
}

pub(super) fn too_late() -> anyhow::Error {
    anyhow!("the guest did not come up within {} s", BOOT_DEADLINE.as_secs())
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
