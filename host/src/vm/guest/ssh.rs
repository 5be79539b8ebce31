//! ssh into a guest with no network and no server that listens there: the guest's `sshd` serves one connection on its
//! standard streams, which are a stream to the agent.
//!
//! Each VM has a key pair for its user and one for its host, made when they are first needed, in its own folder. The
//! guest gets its half as files, in a folder of memory that only root there can read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::exec::{Exec, ExecError};
use tokio::time::Instant;

use crate::durable::rename_unsynced;
use crate::vm::guest::copy::{self, write_with_mode};
use crate::vm::guest::exec::{self, Input, Outcome};
use crate::vm::instance::VmEntry;
use crate::vm::instance::control;

/// Where the guest's half goes: the folder is put into `/run`.
const GUEST_FOLDER: &str = "lazyroot-ssh";

/// Where images have the server. It wants to be called by its full path.
const SERVERS: &[&str] = &["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"];

/// How long a server may take to say the first word. It may have to be read from the host first.
const BANNER_DEADLINE: Duration = Duration::from_secs(60);

/// Pause before a server that ended without a word is tried again.
const EVERY: Duration = Duration::from_millis(500);

/// A VM's keys, in a folder of its folder.
pub struct Keys(PathBuf);

impl Keys {
    /// Those of the VM in `dir`, made now if there are none.
    ///
    /// # Errors
    /// If OpenSSH's ssh-keygen is not installed, or fails.
    pub fn of(dir: &Path) -> Result<Self> {
        let keys = dir.join("ssh");
        if !keys.is_dir() {
            let fresh = tempfile::Builder::new().prefix("ssh-").tempdir_in(dir)?;
            make(fresh.path())?;
            match rename_unsynced(fresh.path(), &keys) {
                // Another command was faster.
                Err(_) if keys.is_dir() => (),
                made => made.context("cannot keep the VM's keys")?,
            }
        }
        Ok(Self(keys))
    }

    fn guest_half(&self) -> PathBuf {
        self.0.join(GUEST_FOLDER)
    }

    /// The configuration for OpenSSH's client: a host by the VM's name.
    ///
    /// # Errors
    /// If a path is not UTF-8, or holds what such a file cannot.
    pub fn client_config(&self, vm: &VmEntry) -> Result<String> {
        let program = std::env::current_exe().context("cannot tell where lazyroot is")?;
        let quoted = |path: &Path| -> Result<String> {
            let text = path.to_str().filter(|text| !text.contains(['"', '\n', '%']));
            Ok(format!("\"{}\"", text.with_context(|| format!("ssh cannot take the path {}", path.display()))?))
        };
        let (program, dir) = (quoted(&program)?, quoted(&vm.dir)?);
        let (identity, known) = (quoted(&self.0.join("id_ed25519"))?, quoted(&self.0.join("known_hosts"))?);
        Ok(format!(
            "Host {name}\n\
             \x20   User root\n\
             \x20   ProxyCommand {program} ssh-proxy {dir}\n\
             \x20   IdentityFile {identity}\n\
             \x20   IdentitiesOnly yes\n\
             \x20   UserKnownHostsFile {known}\n\
             \x20   HostKeyAlias lazyroot\n\
             \x20   StrictHostKeyChecking yes\n",
            name = vm.record.name,
        ))
    }

    /// The configuration as a file.
    ///
    /// # Errors
    /// As [`Self::client_config`], or if it cannot be written.
    pub fn client_config_file(&self, vm: &VmEntry) -> Result<PathBuf> {
        let path = self.0.join("config");
        fs::write(&path, self.client_config(vm)?).context("cannot write the ssh configuration")?;
        Ok(path)
    }
}

/// Makes both key pairs and what goes with them.
fn make(dir: &Path) -> Result<()> {
    let guest = dir.join(GUEST_FOLDER);
    fs::create_dir(&guest)?;
    keygen(&dir.join("id_ed25519"))?;
    keygen(&guest.join("host_key"))?;
    let user = fs::read_to_string(dir.join("id_ed25519.pub"))?;
    let host = fs::read_to_string(guest.join("host_key.pub"))?;
    write_with_mode(&guest.join("authorized_keys"), user.as_bytes(), 0o644)?;
    write_with_mode(&dir.join("known_hosts"), format!("lazyroot {host}").as_bytes(), 0o600)?;
    let config = format!(
        "HostKey /run/{GUEST_FOLDER}/host_key\n\
         AuthorizedKeysFile /run/{GUEST_FOLDER}/authorized_keys\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         PermitRootLogin prohibit-password\n\
         UsePAM yes\n\
         Subsystem sftp internal-sftp\n"
    );
    write_with_mode(&guest.join("sshd_config"), config.as_bytes(), 0o644)
}

fn keygen(path: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "lazyroot", "-f"]).arg(path);
    let output = command.stdin(Stdio::null()).output().context(
        "ssh-keygen is not installed: 'apt-get install openssh-client' on Debian, 'dnf install openssh' on Fedora",
    )?;
    ensure!(output.status.success(), "ssh-keygen failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

/// Hands the guest its half.
async fn hand_over(dir: &Path, keys: &Keys) -> Result<()> {
    copy::put(dir, &keys.guest_half(), b"/run").await.context("cannot hand the guest its ssh keys")?;
    // Where the server leaves its privileges behind; systemd would make it for a service.
    let empty = tempfile::Builder::new().tempdir_in(dir)?;
    let separation = empty.path().join("sshd");
    fs::create_dir(&separation)?;
    fs::set_permissions(&separation, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    copy::put(dir, &separation, b"/run").await
}

fn server(path: &str) -> Exec {
    let config = format!("/run/{GUEST_FOLDER}/sshd_config");
    let argv = [path, "-i", "-f", &config].map(|word| word.as_bytes().to_vec()).into();
    Exec { argv, ..Exec::default() }
}

fn no_server() -> anyhow::Error {
    anyhow::anyhow!("the image has no sshd ({}): 'lazyroot shell' and 'lazyroot exec' need none", SERVERS.join(", "))
}

/// A connection to the guest's sshd on our standard streams.
///
/// # Errors
/// If the VM does not answer, or the image has no server.
pub async fn proxy(dir: &Path) -> Result<exec::Status> {
    hand_over(dir, &Keys::of(dir)?).await?;
    for path in SERVERS {
        let stream = control::open_stream(dir).await?;
        match exec::run(stream, server(path), Input::Ours, || ()).await? {
            Outcome::NotStarted(ExecError::NotFound, _) => (),
            outcome => return Ok(outcome.report()),
        }
    }
    Err(no_server())
}

/// Waits until the guest's sshd says its first word.
///
/// A server that ends without one is tried again: while the image's own ssh.service fails and is restarted, systemd
/// takes the folder that [`hand_over`] made away each time.
///
/// # Errors
/// If it does not, or the image has none.
pub async fn answers(dir: &Path) -> Result<()> {
    let keys = Keys::of(dir)?;
    let deadline = Instant::now() + BANNER_DEADLINE;
    loop {
        hand_over(dir, &keys).await?;
        let first = tokio::time::timeout_at(deadline, first_word(dir)).await;
        let word = first.context("the guest's sshd says nothing")??;
        if word.starts_with(b"SSH-") {
            return Ok(());
        }
        ensure!(word.is_empty(), "the guest's sshd says: {}", crate::text::printable(&String::from_utf8_lossy(&word)));
        ensure!(
            Instant::now() + EVERY < deadline,
            "the guest's sshd ends without a word: the guest's journal has its reason"
        );
        tokio::time::sleep(EVERY).await;
    }
}

/// What the guest's sshd says first; nothing if it ends before.
async fn first_word(dir: &Path) -> Result<Vec<u8>> {
    for path in SERVERS {
        match exec::first_output(control::open_stream(dir).await?, server(path)).await? {
            Ok(word) => return Ok(word),
            Err((ExecError::NotFound, _)) => (),
            Err((_, why)) => bail!("{why}"),
        }
    }
    Err(no_server())
}

/// OpenSSH's client for a VM: options and command are the caller's to add.
///
/// # Errors
/// If the VM's keys or configuration cannot be made.
pub fn client(vm: &VmEntry) -> Result<Command> {
    let keys = Keys::of(&vm.dir)?;
    let config = keys.client_config_file(vm)?;
    // Nothing of the user's own configuration: it was written for other hosts.
    let mut command = Command::new("ssh");
    command.arg("-F").arg(config);
    Ok(command)
}
