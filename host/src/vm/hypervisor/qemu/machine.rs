//! A running QEMU, and the processes beside it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use tokio::process::Child;

use super::qmp;
use crate::vm::hypervisor::machine::{BoxFuture, Machine};
use crate::vm::process::last_words;

/// QEMU's process, and those of its devices.
pub struct QemuMachine {
    pub(super) qemu: Child,
    pub(super) device: Option<Child>,
    pub(super) shares: Vec<Child>,
    pub(super) log: PathBuf,
    pub(super) monitor: PathBuf,
}

impl Machine for QemuMachine {
    fn pids(&self) -> Vec<u32> {
        let others = self.device.iter().chain(&self.shares).map(Child::id);
        [self.qemu.id()].into_iter().chain(others).flatten().collect()
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let status = match &mut self.device {
                None => self.qemu.wait().await?,
                Some(device) => tokio::select! {
                    biased;
                    status = self.qemu.wait() => status?,
                    status = device.wait() => bail!("vhost-device-vsock ended under the VM with {}", status?),
                },
            };
            if !status.success() {
                bail!("QEMU ended with {status}: {}", last_words(&self.log));
            }
            Ok(())
        })
    }

    fn kill(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // Fails only for processes that have ended.
            let _ = self.qemu.kill().await;
            if let Some(device) = &mut self.device {
                let _ = device.kill().await;
            }
            for share in &mut self.shares {
                let _ = share.kill().await;
            }
        })
    }

    fn pause(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(qmp::execute(&self.monitor, "stop"))
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(qmp::execute(&self.monitor, "cont"))
    }
}
