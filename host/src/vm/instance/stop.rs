//! Ending a VM from outside: by asking its lazyroot, and without it where it does not answer.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout};

use crate::home::Home;
use crate::vm::instance::control::{self, OrderKind};
use crate::vm::instance::{VmEntry, Vms};

/// How much longer than its patience a VM's end may take before it counts as hung: its processes are killed then,
/// which is quick.
const MARGIN: Duration = Duration::from_secs(10);

/// Pause between two tries to reach a lazyroot that does not listen yet, or not any more.
const EVERY: Duration = Duration::from_millis(20);

/// Asks a VM to shut down, ends it hard after `within`, and returns when it is gone.
///
/// # Errors
/// If it cannot be ended.
pub async fn stop(vm: &VmEntry, within: Duration) -> Result<()> {
    let deadline = Instant::now() + within + MARGIN;
    while vm.is_alive() {
        match timeout(deadline - Instant::now(), control::order(&vm.dir, OrderKind::Stop(within))).await {
            Ok(Ok(())) => break,
            // It comes up, or is on its way out.
            Ok(Err(_)) if Instant::now() < deadline => sleep(EVERY).await,
            Ok(Err(_)) | Err(_) => return kill(vm).await,
        }
    }
    match timeout(deadline - Instant::now(), gone(vm)).await {
        Ok(ended) => ended,
        Err(_) => kill(vm).await,
    }
}

/// Ends a VM's lazyroot, and with it, by the kernel, all that it started.
async fn kill(vm: &VmEntry) -> Result<()> {
    // The lock is held, so the process is still the one that took it.
    if vm.is_alive() {
        let pid = i32::try_from(vm.record.pid).ok().and_then(Pid::from_raw).context("the VM has no process")?;
        match kill_process(pid, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => (),
            Err(error) => bail!("cannot end process {} of VM '{}': {error}", vm.record.pid, vm.record.name),
        }
    }
    gone(vm).await
}

async fn gone(vm: &VmEntry) -> Result<()> {
    while vm.is_alive() {
        sleep(EVERY).await;
    }
    Ok(())
}

/// Removes a VM; one that lives is ended hard first.
///
/// # Errors
/// If it cannot be ended, or its folder not be removed.
pub async fn remove(home: &Home, vm: &VmEntry) -> Result<()> {
    stop(vm, Duration::ZERO).await?;
    Vms::open(home)?.remove(vm)
}
