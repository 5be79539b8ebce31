//! virtiofsd, which gives a QEMU guest a folder of the host (<https://gitlab.com/virtio-fs/virtiofsd>).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use crate::vm::hypervisor::machine::Share;
use crate::vm::process::{end_with_parent, last_words};
use crate::vm::programs;

const NAME: &str = "virtiofsd";
const VARIABLE: &str = "LAZYROOT_VIRTIOFSD";

/// Where distributions put it, out of `PATH`.
const PLACES: &[&str] = &["/usr/libexec", "/usr/lib", "/usr/lib/qemu"];

/// How long it may take to make its socket.
const SOCKET_DEADLINE: Duration = Duration::from_secs(10);

/// The socket of the one that serves `share`.
pub fn socket(dir: &Path, share: &Share) -> PathBuf {
    dir.join(format!("{}.fs", share.tag))
}

fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("there is no {NAME} at {} ({VARIABLE})", path.display());
        }
        return Ok(path);
    }
    let places: Vec<PathBuf> = PLACES.iter().map(PathBuf::from).collect();
    programs::find(NAME, &places).with_context(|| {
        format!("{NAME}, which shares folders with a guest, is not installed: 'apt-get install {NAME}' on Debian 13, 'dnf install {NAME}' on Fedora, or 'cargo install {NAME}'")
    })
}

/// Starts the one for `share`, and waits until QEMU can connect to it.
///
/// # Errors
/// If it is not installed, or fails; with its own words.
pub async fn start(dir: &Path, share: &Share) -> Result<Child> {
    let program = program()?;
    let (socket, log) = (socket(dir, share), dir.join(format!("{}.log", share.tag)));
    let mut command = Command::new(&program);
    command.arg("--socket-path").arg(&socket).arg("--shared-dir").arg(&share.dir);
    // Its own view of the files, so that no name in the folder leads out of it. Without root: in a user namespace,
    // where all files are the user's.
    command.args(["--sandbox", "namespace", "--announce-submounts"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(&log).context("cannot make virtiofsd's log")?).kill_on_drop(true);
    command.process_group(0);
    end_with_parent(command.as_std_mut());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let deadline = Instant::now() + SOCKET_DEADLINE;
    while !socket.exists() {
        if let Some(status) = child.try_wait()? {
            bail!("{NAME} for {} ended with {status}: {}", share.dir.display(), last_words(&log));
        }
        if Instant::now() > deadline {
            bail!("{NAME} made no socket within {} s", SOCKET_DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(child)
}
