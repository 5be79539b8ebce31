//! vhost-device-vsock: brings a guest's vsock connections to a unix socket where the host's kernel has no vhost_vsock
//! (<https://github.com/rust-vmm/vhost-device>).

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use super::daemon::Daemon;
use crate::home::Home;
use crate::vm::programs;

const NAME: &str = "vhost-device-vsock";
const VARIABLE: &str = "LAZYROOT_VHOST_DEVICE_VSOCK";

/// The daemon of this machine.
///
/// # Errors
/// If it is not installed.
pub fn program(home: &Home) -> Result<PathBuf> {
    if let Some(path) = programs::named_by(VARIABLE, NAME)? {
        return Ok(path);
    }
    let cargo = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin"));
    let folders: Vec<PathBuf> = cargo.into_iter().chain([home.data_dir("bin")?]).collect();
    programs::find(NAME, &folders).with_context(|| {
        format!(
            "this kernel has no /dev/vhost-vsock, and {NAME}, which serves without it, is not installed: \
             'modprobe vhost_vsock' as root, or 'cargo install {NAME}'"
        )
    })
}

/// Starts one for the guest with the address `cid`, and waits until a hypervisor can connect to `socket`. The guest's
/// port N arrives at `uds`_N.
///
/// # Errors
/// If it fails, with its own words, or if a path cannot be said in its command line.
pub async fn start(program: &Path, cid: u32, socket: &Path, uds: &Path, log: &Path) -> Result<Child> {
    for path in [socket, uds] {
        if path.to_string_lossy().contains(',') {
            bail!("{NAME} cannot take a path with a comma: {}", path.display());
        }
    }
    let utf8 = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .with_context(|| format!("QEMU cannot take the path {}, which is not UTF-8", path.display()))
    };
    let mut command = Command::new(program);
    command.args(["--vm", &format!("guest-cid={cid},socket={},uds-path={}", utf8(socket)?, utf8(uds)?)]);
    let stderr = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    Daemon { name: NAME, about: NAME.to_owned(), socket, log }.start(command, stderr).await
}
