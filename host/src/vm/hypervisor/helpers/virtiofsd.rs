//! virtiofsd, which gives a guest a folder of the host (<https://gitlab.com/virtio-fs/virtiofsd>).

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::process::{Child, Command};

use super::daemon::Daemon;
use crate::vm::hypervisor::machine::Share;
use crate::vm::programs;

const NAME: &str = "virtiofsd";
const VARIABLE: &str = "LAZYROOT_VIRTIOFSD";

/// Where distributions put it, out of `PATH`.
const PLACES: &[&str] = &["/usr/libexec", "/usr/lib", "/usr/lib/qemu"];

/// The socket of the one that serves `share`.
pub fn socket(dir: &Path, share: &Share) -> PathBuf {
    dir.join(format!("{}.fs", share.tag))
}

fn program() -> Result<PathBuf> {
    if let Some(path) = programs::named_by(VARIABLE, NAME)? {
        return Ok(path);
    }
    let places: Vec<PathBuf> = PLACES.iter().map(PathBuf::from).collect();
    programs::find(NAME, &places).with_context(|| {
        format!("{NAME}, which shares folders with a guest, is not installed: 'apt-get install {NAME}' on Debian 13, 'dnf install {NAME}' on Fedora, or 'cargo install {NAME}'")
    })
}

/// Starts the one for `share`, and waits until a hypervisor can connect to it.
///
/// # Errors
/// If it is not installed, or fails; with its own words.
pub async fn start(dir: &Path, share: &Share) -> Result<Child> {
    let (socket, log) = (socket(dir, share), dir.join(format!("{}.log", share.tag)));
    let mut command = Command::new(program()?);
    command.arg("--socket-path").arg(&socket).arg("--shared-dir").arg(&share.dir);
    // Its own view of the files, so that no name in the folder leads out of it. Without root: in a user namespace,
    // where all files are the user's.
    command.args(["--sandbox", "namespace", "--announce-submounts"]);
    let stderr = File::create(&log).context("cannot make virtiofsd's log")?;
    let about = format!("{NAME} for {}", share.dir.display());
    Daemon { name: NAME, about, socket: &socket, log: &log }.start(command, stderr).await
}
