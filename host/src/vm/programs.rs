//! Finding the programs that VMs need, and asking how old they are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::text::printable;

/// Where Homebrew and podman's installer put programs, some of them outside of `PATH` (the default
/// `helper_binaries_dir` of containers.conf(5) on macOS, and podman's own package).
const MACOS_FOLDERS: &[&str] = &[
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/opt/podman/bin",
    "/opt/homebrew/opt/podman/libexec/podman",
    "/usr/local/opt/podman/libexec/podman",
    "/opt/homebrew/opt/vfkit/bin",
    "/usr/local/libexec/podman",
    "/usr/local/lib/podman",
];

/// The program `name` in `PATH`, else in one of `folders`.
pub fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::env::split_paths(&path).chain(folders.iter().cloned());
    paths.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The program that a variable of the environment names; `None` if it is not set or empty.
///
/// # Errors
/// If there is no such file.
pub fn named_by(variable: &str, name: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(None);
    };
    if !path.is_file() {
        bail!("there is no {name} at {} ({variable})", path.display());
    }
    Ok(Some(path))
}

/// Major, minor and patch.
pub type Version = (u32, u32, u32);

/// A program of others that is needed on macOS.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// Its name.
    pub name: &'static str,
    /// What makes it say its version.
    pub version_option: &'static str,
    /// The oldest that will do.
    pub oldest: Version,
    /// What it does for us: "runs VMs".
    pub purpose: &'static str,
    /// The command that installs it.
    pub install: &'static str,
    /// The command that brings a newer one.
    pub upgrade: &'static str,
}

impl Requirement {
    /// Where it is.
    ///
    /// # Errors
    /// If it is nowhere; says how to install it.
    pub fn find(&self) -> Result<PathBuf> {
        // Homebrew's and podman's folders mean nothing elsewhere.
        let folders = if cfg!(target_os = "macos") { MACOS_FOLDERS } else { &[] };
        let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
        find(self.name, &folders).with_context(|| {
            format!(
                "{}, which {}, is neither in PATH nor where Homebrew and podman put it: '{}'",
                self.name, self.purpose, self.install
            )
        })
    }

    /// What it says of its version, and where it is.
    ///
    /// # Errors
    /// As [`Requirement::find`] and [`Requirement::check_version`].
    pub fn look(&self) -> Result<String> {
        let path = self.find()?;
        Ok(format!("{} at {}", self.check_version(&path)?, path.display()))
    }

    /// What it says of its version.
    ///
    /// # Errors
    /// If it cannot be run, or is too old. A build that names no release is taken for a new one.
    pub fn check_version(&self, program: &Path) -> Result<String> {
        let output = Command::new(program).arg(self.version_option).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let said = printable(String::from_utf8_lossy(&output.stdout).trim());
        let Some(found) = version(&said) else { return Ok(said) };
        if found < self.oldest {
            let ((major, minor, patch), (a, b, c)) = (self.oldest, found);
            bail!(
                "{} at {} is too old: it is {a}.{b}.{c}, and lazyroot needs {major}.{minor}.{patch} or later: '{}'",
                self.name,
                program.display(),
                self.upgrade
            );
        }
        Ok(said)
    }
}

/// The first release number in a text: `vfkit version: v0.6.1-3-gabcdef` is (0, 6, 1).
fn version(text: &str) -> Option<Version> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split(['.', '-', '+']);
        let mut number = || numbers.next()?.parse().ok();
        Some((number()?, number()?, number()?))
    })
}

/// Makes a program of a shell script. A process of its own writes the file: a child that another test forks meanwhile
/// would inherit our descriptor, and the kernel executes no file that is open for writing (`ETXTBSY`).
#[cfg(test)]
pub fn write_script(path: &Path, script: &str) {
    use std::io::Write;

    let mut command = Command::new("install");
    let mut install = command.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    write!(install.stdin.take().unwrap(), "#!/bin/sh\n{script}\n").unwrap();
    assert!(install.wait().unwrap().success());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version("vfkit version: v0.6.1"), Some((0, 6, 1)));
        assert_eq!(version("gvproxy version v0.8.7-12-gabc"), Some((0, 8, 7)));
        assert_eq!(version("vfkit version: unknown"), None);
        assert_eq!(version("gvproxy version git2c897d90"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn an_old_program_is_refused_with_both_versions_and_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vfkit");
        let needs = Requirement {
            name: "vfkit",
            version_option: "--version",
            oldest: (0, 6, 1),
            purpose: "runs VMs",
            install: "brew install vfkit",
            upgrade: "brew upgrade vfkit",
        };
        let says = |text: &str| {
            write_script(&program, &format!("echo '{text}'"));
            needs.check_version(&program)
        };
        let error = says("vfkit version: v0.5.1").unwrap_err().to_string();
        assert!(["0.5.1", "0.6.1", "brew upgrade vfkit"].iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(says("vfkit version: v0.6.1").unwrap(), "vfkit version: v0.6.1");
        assert!(says("vfkit version: v1.0.0").is_ok());
        assert!(says("vfkit version: unknown").is_ok());
    }
}
