//! A VM in which nothing runs, for work that needs no more than its agent.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use lazyroot_proto::exec::Exec;

use super::Launch;
use super::supervise::{BOOT_DEADLINE, ConsoleUser, Supervision, Vm, too_late};
use crate::home::Home;
use crate::store::Store;
use crate::vm::guest::exec::{self, Status};

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
        vm = Vm::start(home, store, &launch, ConsoleUser::Nobody, launched) => vm?,
    };
    let (agent, watch, dir) = (vm.agent.clone(), vm.watch.clone(), vm.instance.dir().to_owned());
    let work = async {
        tokio::time::timeout(BOOT_DEADLINE, agent.connected()).await.map_err(|_| too_late())?;
        watch.ready();
        tokio::select! {
            biased;
            status = exec::ended_by_signal() => Err(interrupted(status?)),
            done = work(dir) => done,
        }
    };
    let supervision = vm.drive(work).await;
    vm.end_machine().await;
    match supervision {
        Ok(Supervision::Done(done)) => done,
        Ok(Supervision::Ended | Supervision::Killed) => bail!("the VM ended too early"),
        Err(error) => match vm.explain(Err(error)) {
            Err(error) => Err(error),
            Ok(_) => bail!("the VM ended too early"),
        },
    }
}
