//! vfkit as it is installed: starting a machine of it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::frame::DEFAULT_PORT;
use lazyroot_proto::settings;
use tokio::process::Child;

use super::arguments::{Sockets, arguments};
use super::program::VFKIT;
use super::rest::{Change, Rest, State};
use crate::vm::hypervisor::console::Console;
use crate::vm::hypervisor::helpers::gvproxy::{GVPROXY, Gvproxy};
use crate::vm::hypervisor::machine::{BoxFuture, GuestListener, Hypervisor, Machine, MachineSpec, Network};
use crate::vm::kernel::arch::Arch;
use crate::vm::kernel::unwrap;
use crate::vm::process::{Leash, last_words, leashed};
use crate::vm::programs::Requirement;

/// How long vfkit may take until the VM runs: a framework process starts, which takes a part of a second.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How often it is asked meanwhile.
const START_POLL: Duration = Duration::from_millis(5);

/// How long a VM may take to be stopped before its process is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// vfkit as it is installed.
pub struct Vfkit {
    program: PathBuf,
}

impl Vfkit {
    /// vfkit as it is installed.
    ///
    /// # Errors
    /// If it is not.
    pub fn new() -> Result<Self> {
        Ok(Self { program: VFKIT.find()? })
    }

    async fn launch(&self, spec: &MachineSpec) -> Result<VfkitMachine> {
        let (vsock, rest, network) = (vsock_socket(spec), spec.dir.join("rest"), spec.dir.join("net"));
        // First: what cannot be said must not leave a gvproxy behind.
        let arguments = arguments(spec, &Sockets { vsock: &vsock, rest: &rest, network: &network })?;
        unwrap::check_plain(&spec.kernel, Arch::HOST)?;
        ensure!(spec.initramfs.is_file(), "there is no initramfs at {}", spec.initramfs.display());
        let gvproxy = match spec.network {
            Network::User => {
                let program = GVPROXY.find().context("the VM cannot have a network; --net none does without")?;
                let started = Gvproxy::start(&program, &network, &spec.dir).await;
                Some(started.map_err(|error| explain(&GVPROXY, &program, error))?)
            }
            Network::None | Network::Nat => None,
        };
        let log = spec.dir.join("vfkit.log");
        let (mut command, leash) = leashed(&self.program)?;
        command.args(arguments).stderr(create(&log)?).kill_on_drop(true);
        if spec.console != Console::Stdio {
            command.stdin(Stdio::null()).stdout(create(&spec.dir.join("vfkit.out"))?);
            // Ctrl-C is for us, and for the program in the guest.
            command.process_group(0);
        }
        let vfkit = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut machine = VfkitMachine { vfkit, gvproxy, rest: Rest::new(&rest), log, _leash: leash };
        match machine.wait_until_running().await {
            Ok(()) => Ok(machine),
            Err(error) => {
                machine.stop_now().await;
                Err(explain(&VFKIT, &self.program, error))
            }
        }
    }
}

impl Hypervisor for Vfkit {
    fn acceleration(&self) -> &'static str {
        "vz"
    }

    fn cmdline(&self) -> String {
        String::new()
    }

    fn vsock_port(&self) -> u32 {
        DEFAULT_PORT
    }

    fn vsock(&self, spec: &MachineSpec) -> GuestListener {
        GuestListener::Unix(vsock_socket(spec))
    }

    fn network_settings(&self, network: Network) -> Option<settings::Network> {
        // gvproxy's own defaults: its first address is its own, the second the guest's.
        let (address, gateway) = ([192, 168, 127, 2], [192, 168, 127, 1]);
        (network == Network::User).then_some(settings::Network { address, prefix: 24, gateway, dns: gateway })
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec) -> BoxFuture<'a, Result<Box<dyn Machine>>> {
        Box::pin(async move { Ok(Box::new(self.launch(spec).await?) as Box<dyn Machine>) })
    }
}

/// Why a program did not start: an old one calls what it does not know an error, and does not say that it is old.
fn explain(needed: &Requirement, program: &Path, error: anyhow::Error) -> anyhow::Error {
    match needed.check_version(program) {
        Err(too_old) => error.context(too_old),
        Ok(_) => error,
    }
}

fn vsock_socket(spec: &MachineSpec) -> PathBuf {
    spec.dir.join(format!("v_{}", spec.vsock_port))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot make {}", path.display()))
}

struct VfkitMachine {
    vfkit: Child,
    gvproxy: Option<Gvproxy>,
    rest: Rest,
    log: PathBuf,
    _leash: Leash,
}

impl VfkitMachine {
    /// Waits until the VM runs: only then has vfkit a listener for the guest's connections.
    async fn wait_until_running(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Some(status) = self.vfkit.try_wait()? {
                bail!("vfkit ended with {status}: {}", last_words(&self.log));
            }
            match self.rest.state().await {
                Ok(State::Running) => return Ok(()),
                Ok(State::Error) => bail!("vfkit cannot run the VM: {}", last_words(&self.log)),
                Ok(_) | Err(_) if Instant::now() < deadline => tokio::time::sleep(START_POLL).await,
                Ok(state) => bail!("the VM is still {state:?} after {START_DEADLINE:?}: {}", last_words(&self.log)),
                Err(error) => return Err(error.context(format!("vfkit is not up after {START_DEADLINE:?}"))),
            }
        }
    }

    /// Ends the VM, by vfkit's own way if it still has one.
    async fn stop_now(&mut self) {
        let stop = async {
            self.rest.change(Change::HardStop).await?;
            anyhow::Ok(self.vfkit.wait().await?)
        };
        let _ = tokio::time::timeout(STOP_DEADLINE, stop).await;
        // Fails only for processes that have ended.
        let _ = self.vfkit.kill().await;
        if let Some(gvproxy) = &mut self.gvproxy {
            gvproxy.stop().await;
        }
    }
}

impl Machine for VfkitMachine {
    fn pids(&self) -> Vec<u32> {
        [self.vfkit.id(), self.gvproxy.as_ref().and_then(Gvproxy::pid)].into_iter().flatten().collect()
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let status = match &mut self.gvproxy {
                None => self.vfkit.wait().await?,
                Some(gvproxy) => tokio::select! {
                    biased;
                    status = self.vfkit.wait() => status?,
                    why = gvproxy.ended() => bail!("the VM's network is gone: {why}"),
                },
            };
            ensure!(status.success(), "vfkit ended under the VM with {status}: {}", last_words(&self.log));
            Ok(())
        })
    }

    fn kill(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.stop_now())
    }

    fn pause(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.rest.change(Change::Pause))
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.rest.change(Change::Resume))
    }

    fn power_button(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.rest.change(Change::Stop))
    }

    fn inspect(&mut self) -> BoxFuture<'_, Result<serde_json::Value>> {
        Box::pin(self.rest.inspect())
    }
}
