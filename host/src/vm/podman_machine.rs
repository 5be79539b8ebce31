//! The podman machine: where podman keeps its images on macOS, and a Linux kernel with its modules.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::text::printable;
use crate::vm::check::{Check, Health};
use crate::vm::programs::Requirement;

/// The podman that we need: 5.0 runs its machines with vfkit itself.
pub const PODMAN: Requirement = Requirement {
    name: "podman",
    version_option: "--version",
    oldest: (5, 0, 0),
    purpose: "keeps images and their kernel in its machine",
    install: "brew install podman",
    upgrade: "brew upgrade podman",
};

/// Looks at podman and its default machine.
pub fn detect() -> Vec<Check> {
    let machine = || -> Result<String> {
        let machine = PodmanMachine::inspect(None)?;
        machine.check_running()?;
        let (kind, other) = if machine.rootful { ("rootful", "rootless") } else { ("rootless", "rootful") };
        Ok(format!("{} runs, {kind}: images that were made in its {other} store are not seen", machine.name))
    };
    vec![Check::of("podman", Health::Warning, PODMAN.look()), Check::of("podman machine", Health::Warning, machine())]
}

/// Sends the running kernel and its modules, by the paths that they have.
const SEND_KERNEL: &str = "cd / && d=usr/lib/modules/$(uname -r) && exec tar -cf - --ignore-failed-read \
                           $d/vmlinuz $d/config $d/modules.builtin $d/kernel";

/// The longest complaint that is taken from podman, in bytes.
const MAX_WORDS: u64 = 16 << 10;

/// What `podman machine inspect` says of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PodmanMachine {
    /// Its name.
    pub name: String,
    /// `running`, `stopped`, `starting`.
    pub state: String,
    /// Whether its images are root's. Podman shows the other store's images to nobody.
    #[serde(default)]
    pub rootful: bool,
}

impl PodmanMachine {
    /// The machine of that name, or podman's default machine.
    ///
    /// # Errors
    /// If podman is missing, or there is no such machine; says how to make one.
    pub fn inspect(name: Option<&str>) -> Result<Self> {
        let program = PODMAN.find()?;
        let output = Command::new(&program).args(["machine", "inspect"]).args(name).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            let said = printable(String::from_utf8_lossy(&output.stderr).trim());
            let name = name.map(|name| format!(" {name}")).unwrap_or_default();
            bail!(
                "there is no podman machine{name} ({said}): 'podman machine ls' lists them, 'podman machine init{name}' \
                 makes one"
            );
        }
        Self::parse(&output.stdout)
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let machines: Vec<Self> =
            serde_json::from_slice(json).context("podman describes its machine in other words")?;
        machines.into_iter().next().context("podman describes no machine")
    }

    /// Checks that it runs.
    ///
    /// # Errors
    /// If it does not; with the command that starts it.
    pub fn check_running(&self) -> Result<()> {
        if self.state != "running" {
            bail!("the podman machine {0} is {1}: 'podman machine start {0}'", self.name, printable(&self.state));
        }
        Ok(())
    }

    /// Whose images it has, in podman's words.
    pub fn kind(&self) -> &'static str {
        if self.rootful { "rootful" } else { "rootless" }
    }

    /// A tar stream with the kernel that the machine runs, and its modules.
    ///
    /// # Errors
    /// If it does not run, or podman cannot reach it; with podman's own words.
    pub fn read_kernel<T>(&self, read: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
        self.check_running()?;
        let program: PathBuf = PODMAN.find()?;
        let mut command = Command::new(&program);
        command.args(["machine", "ssh", &self.name, SEND_KERNEL]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let stderr = child.stderr.take().expect("piped");
        let words = std::thread::spawn(move || {
            let mut words = Vec::new();
            let mut stderr = stderr.take(MAX_WORDS);
            let _ = stderr.read_to_end(&mut words);
            // The rest must not stop whoever writes it.
            let _ = std::io::copy(&mut stderr.into_inner(), &mut std::io::sink());
            String::from_utf8_lossy(&words).trim().to_owned()
        });
        let mut stdout = child.stdout.take().expect("piped");
        let content = read(&mut stdout);
        // Behind the archive's end there is padding: podman must be able to write it.
        let _ = std::io::copy(&mut stdout, &mut std::io::sink());
        let status = child.wait()?;
        let words = printable(&words.join().unwrap_or_default());
        if !status.success() {
            bail!("cannot read the kernel of the podman machine {}: podman ended with {status}: {words}", self.name);
        }
        content.with_context(|| format!("cannot read the kernel of the podman machine {}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_what_podman_says() {
        let json =
            br#"[{"ConfigDir":{"Path":"/x"},"Name":"podman-machine-default","Resources":{"CPUs":6,"Memory":2048},
            "SSHConfig":{"Port":60000,"RemoteUsername":"core"},"State":"stopped","Rootful":true,"Rosetta":true}]"#;
        let machine = PodmanMachine::parse(json).unwrap();
        assert_eq!((machine.name.as_str(), machine.kind()), ("podman-machine-default", "rootful"));
        let error = machine.check_running().unwrap_err().to_string();
        assert!(error.contains("stopped") && error.contains("podman machine start podman-machine-default"), "{error}");
        let running = PodmanMachine { state: "running".into(), ..machine };
        assert!(running.check_running().is_ok());
        assert!(PodmanMachine::parse(b"[]").is_err());
        assert!(PodmanMachine::parse(b"nonsense").is_err());
    }
}
