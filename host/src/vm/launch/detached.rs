//! A VM that goes on without a terminal.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lazyroot_proto::exec::{Exec, ExecError};

use super::supervise::{BOOT_DEADLINE, ConsoleUser, Supervision, Vm, too_late};
use super::{Keep, Launch};
use crate::home::Home;
use crate::serve::BoxStream;
use crate::serve::report::{Kind, Reporter};
use crate::store::Store;
use crate::vm::guest::exec::{self, DetachedProgram, Outcome, Status};
use crate::vm::guest::readiness::Wait;
use crate::vm::instance::{self, End};
use crate::vm::log::Log;

/// How long it may take from there until it is ready: an emulated systemd on a busy machine takes a minute.
const READY_DEADLINE: Duration = Duration::from_secs(300);

/// In a VM's folder, what its command writes, if nobody sits at it.
pub const OUTPUT_LOG: &str = "output.log";

/// Boots a VM that goes on without a terminal. Once it is ready `up` is called with its name and folder, and lets go of
/// whoever waited; the future then lasts as long as the VM. A command that cannot be run gives its status, and why.
///
/// # Errors
/// If the VM cannot be started or does not become ready; what happens later is for [`VmEntry`](crate::vm::instance::VmEntry).
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
        vm = Vm::start(home, store, &launch, ConsoleUser::Nobody, launched) => vm?,
    };
    let ready = vm.become_ready(launch.command, &launch.wait).await;
    let program = match ready {
        Ok(Beginning::Running(program)) => program,
        Ok(Beginning::NotStarted(why, text)) => {
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
            vm.drive(work).await.and_then(Supervision::status)
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

/// A VM that is ready.
enum Beginning {
    /// With its command and where that writes to, if it has one.
    Running(Option<(DetachedProgram<BoxStream>, Log)>),
    NotStarted(ExecError, String),
}

impl Vm {
    /// Waits until the guest's agent is there, and the command runs, if there is one.
    async fn become_ready(&mut self, command: Option<Exec>, wait: &Wait) -> Result<Beginning> {
        let (agent, watch, dir) = (self.agent.clone(), self.watch.clone(), self.instance.dir().to_owned());
        let log = dir.join(OUTPUT_LOG);
        let begin = async {
            tokio::time::timeout(BOOT_DEADLINE, agent.connected()).await.map_err(|_| too_late())?;
            let Some(exec) = command else {
                wait.wait(&dir, &watch).await?;
                return Ok(Beginning::Running(None));
            };
            let log = Log::create(&log).context("cannot make the command's log")?;
            match DetachedProgram::start(agent.open_stream().await?, exec).await? {
                Ok(program) => Ok(Beginning::Running(Some((program, log)))),
                Err((why, text)) => Ok(Beginning::NotStarted(why, text)),
            }
        };
        let begin = async {
            tokio::select! {
                beginning = begin => beginning,
                () = tokio::time::sleep(READY_DEADLINE) => {
                    bail!("it was not ready within {} s; --wait says what for", READY_DEADLINE.as_secs())
                }
                status = exec::ended_by_signal() => bail!("ended by signal {}", status?.0),
            }
        };
        match self.drive(begin).await? {
            Supervision::Done(beginning) => beginning,
            Supervision::Ended => bail!("the VM ended before it was ready"),
            Supervision::Killed => bail!("it was stopped before it was ready"),
        }
    }
}
