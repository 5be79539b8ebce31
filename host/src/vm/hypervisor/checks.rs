//! What a Mac must have for VMs, looked at piece by piece: for `lazyroot doctor`.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::vm::hypervisor::vfkit::{GVPROXY, VFKIT};
use crate::vm::podman_machine::{PODMAN, PodmanMachine};
use crate::vm::programs::Requirement;

/// What is missing without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// No VM can run.
    Needed,
    /// Something else cannot be done.
    Useful,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Of what.
    pub name: &'static str,
    /// What is missing without it.
    pub weight: Weight,
    /// What was found, or what is wrong and how to mend it.
    pub outcome: Result<String, String>,
}

/// Looks at vfkit, its signature, gvproxy, podman and its default machine.
pub fn macos() -> Vec<Check> {
    let mut checks = vec![program("vfkit", Weight::Needed, &VFKIT)];
    if cfg!(target_os = "macos") {
        checks.push(Check { name: "code signing", weight: Weight::Needed, outcome: entitlement() });
    }
    checks.push(program("gvproxy", Weight::Useful, &GVPROXY));
    checks.push(program("podman", Weight::Useful, &PODMAN));
    let machine = || -> anyhow::Result<String> {
        let machine = PodmanMachine::inspect(None)?;
        machine.check_running()?;
        let (kind, other) = if machine.rootful { ("rootful", "rootless") } else { ("rootless", "rootful") };
        Ok(format!("{} runs, {kind}: images that were made in its {other} store are not seen", machine.name))
    };
    checks.push(Check { name: "podman machine", weight: Weight::Useful, outcome: machine().map_err(words) });
    checks
}

fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn program(name: &'static str, weight: Weight, requirement: &Requirement) -> Check {
    let look = || -> anyhow::Result<String> {
        let path = requirement.find()?;
        Ok(format!("{} at {}", requirement.check_version(&path)?, path.display()))
    };
    Check { name, weight, outcome: look().map_err(words) }
}

/// Apple's framework runs VMs for programs that are signed with its entitlement: vfkit is, as it is installed, and
/// lazyroot need not be.
fn entitlement() -> Result<String, String> {
    const ENTITLEMENT: &str = "com.apple.security.virtualization";
    let vfkit = VFKIT.find().map_err(words)?;
    let show = |program: &Path| {
        let mut command = Command::new("/usr/bin/codesign");
        command.args(["--display", "--entitlements", "-", "--xml"]).arg(program).stdin(Stdio::null()).output()
    };
    let output = show(&vfkit).map_err(|error| format!("cannot run /usr/bin/codesign: {error}"))?;
    if String::from_utf8_lossy(&output.stdout).contains(ENTITLEMENT) {
        return Ok(format!("{} may run VMs; lazyroot needs no signature of its own", vfkit.display()));
    }
    Err(format!("{} is not signed with {ENTITLEMENT}: install it with '{}'", vfkit.display(), VFKIT.install))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_it() {
        // Nothing of this is on a machine that runs the tests; where it is, nothing is asked of it here.
        for check in macos() {
            if let Err(error) = check.outcome {
                assert!(error.contains('\''), "no command mends it: {}: {error}", check.name);
            }
        }
    }
}
