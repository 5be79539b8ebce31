//! gvproxy: a VM's network in user space, in a process of its own beside vfkit
//! (<https://github.com/containers/gvisor-tap-vsock>).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Child;

use crate::vm::process::{Leash, last_words, leashed};
use crate::vm::programs::Requirement;

/// The gvproxy that we need: 0.7.0 listens for vfkit.
pub const GVPROXY: Requirement = Requirement {
    name: "gvproxy",
    version_option: "-version",
    oldest: (0, 7, 0),
    purpose: "is a VM's network in user space",
    install: "brew install podman",
    upgrade: "brew upgrade podman",
};

/// How long gvproxy may take to make its socket.
const DEADLINE: Duration = Duration::from_secs(10);

/// A running gvproxy. Dropping it ends it.
pub struct Gvproxy {
    process: Child,
    log: PathBuf,
    _leash: Leash,
}

impl Gvproxy {
    /// Starts `program` for the one VM that connects to `socket`; its log goes to `dir`.
    ///
    /// # Errors
    /// If it does not start; with its own words.
    pub async fn start(program: &Path, socket: &Path, dir: &Path) -> Result<Self> {
        let log = dir.join("gvproxy.log");
        let out = std::fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let (mut command, leash) = leashed(program)?;
        command
            .arg("-listen-vfkit")
            .arg(format!("unixgram://{}", socket.display()))
            // -1: none of the host's ports, which all VMs would have to share. The guest's ports are forwarded by us.
            .args(["-ssh-port", "-1", "-mtu", "1500"])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .kill_on_drop(true);
        let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut gvproxy = Self { process, log, _leash: leash };
        let deadline = Instant::now() + DEADLINE;
        while !socket.exists() {
            if let Some(status) = gvproxy.process.try_wait()? {
                bail!("gvproxy ended with {status}: {}", last_words(&gvproxy.log));
            }
            if Instant::now() > deadline {
                bail!("gvproxy made no socket within {DEADLINE:?}: {}", last_words(&gvproxy.log));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(gvproxy)
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits until it ends by itself, which it never should; says how.
    pub async fn ended(&mut self) -> String {
        let how = match self.process.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        format!("gvproxy ended with {how}: {}", last_words(&self.log))
    }

    /// Ends it.
    pub async fn stop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::programs::write_script;

    /// A program that does this with the socket's path in `$path`, told from arguments as gvproxy's are.
    fn program(dir: &Path, script: &str) -> PathBuf {
        let program = dir.join("gvproxy");
        let path = r#"[ "$1" = -listen-vfkit ] && path=${2#unixgram://}"#;
        write_script(&program, &format!("{path}\n{script}"));
        program
    }

    #[tokio::test]
    async fn it_runs_until_it_is_stopped_and_its_death_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("net");
        let works = program(dir.path(), r#": >"$path"; exec sleep 1000"#);
        let mut running = Gvproxy::start(&works, &socket, dir.path()).await.unwrap();
        assert!(running.pid().is_some());
        running.stop().await;
        assert_eq!(running.pid(), None);

        std::fs::remove_file(&socket).unwrap();
        let dies = program(dir.path(), r#": >"$path"; sleep 0.1; echo 'no more' >&2; exit 3"#);
        let mut dying = Gvproxy::start(&dies, &socket, dir.path()).await.unwrap();
        let why = dying.ended().await;
        assert!(why.contains("exit status: 3") && why.contains("no more"), "{why}");
    }

    #[tokio::test]
    async fn one_that_does_not_start_gives_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        let old = program(dir.path(), "echo 'flag provided but not defined: -listen-vfkit' >&2; exit 2");
        let started = Gvproxy::start(&old, &dir.path().join("net"), dir.path()).await;
        let error = started.err().unwrap().to_string();
        assert!(error.contains("not defined") && error.contains("exit status: 2"), "{error}");
    }
}
