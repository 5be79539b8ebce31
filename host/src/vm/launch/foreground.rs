//! A VM that runs a command, or the image's init, on this terminal, and ends with it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lazyroot_proto::exec::Exec;

use super::Launch;
use super::report::{Report, disk_bytes_written};
use super::supervise::{BOOT_DEADLINE, ConsoleUser, Supervision, Vm, too_late};
use crate::home::Home;
use crate::store::Store;
use crate::vm::guest::exec::{self, Input, Outcome, SavedTerminal, Status};
use crate::vm::log;

/// How long after a guest's streams its hypervisor may end, for that to be the reason.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
        vm = Vm::start(home, store, &launch, if interactive { ConsoleUser::Terminal } else { ConsoleUser::Nobody }, launched) => vm?,
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

impl Vm {
    /// Waits for the guest's agent, and has it run the command.
    async fn run_command(&mut self, exec: Exec) -> Result<Status> {
        let agent = self.agent.clone();
        let opening = async {
            tokio::select! {
                stream = agent.open_stream() => Ok(Ok(stream?)),
                () = tokio::time::sleep(BOOT_DEADLINE) => Err(too_late()),
                status = exec::ended_by_signal() => Ok(Err(status?)),
            }
        };
        let stream = match self.drive(opening).await? {
            Supervision::Done(Ok(Ok(stream))) => stream,
            Supervision::Done(Ok(Err(status))) => return Ok(status),
            Supervision::Done(Err(error)) => return Err(error),
            Supervision::Ended => bail!("the VM ended before the command could run"),
            Supervision::Killed => return Ok(Status::KILLED),
        };
        let watch = self.watch.clone();
        let run = exec::run(stream, exec, Input::Ours, || watch.ready());
        let supervision = self.drive(async { run.await.map(Outcome::report) }).await?;
        // A hypervisor that dies takes the guest's streams along first: its own end says more.
        if let Supervision::Done(Err(_)) = &supervision
            && let Ok(ended) = tokio::time::timeout(LAST_WORDS, self.machine.wait()).await
        {
            ended?;
        }
        supervision.status()
    }
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
