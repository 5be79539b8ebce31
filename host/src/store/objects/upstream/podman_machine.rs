//! The lazyroot in a podman machine, reached over podman's own ssh.
//!
//! The machine's images are in its disk, which the host cannot read. `podman machine ssh` gives a clean byte stream on
//! its standard input and output.

use super::dial::Dial;

/// How to reach `program` in the machine of that name, or in podman's default machine.
pub(super) fn dial(machine: Option<&str>, program: &str) -> Dial {
    let mut argv = vec!["podman".to_owned(), "machine".to_owned(), "ssh".to_owned()];
    argv.extend(machine.map(str::to_owned));
    argv.extend([program.to_owned(), "serve".to_owned(), "--stdio".to_owned()]);
    let machine = machine.map(str::to_owned);
    Dial::Program { argv, advice: Box::new(move |words| advice(machine.as_deref(), words)) }
}

/// The way out of what podman or the machine's shell said.
fn advice(machine: Option<&str>, words: &str) -> Option<String> {
    let suffix = machine.map(|name| format!(" {name}")).unwrap_or_default();
    let has = |text: &str| words.contains(text);
    if has("not running") || has("is stopped") || has("connection refused") || has("Connection refused") {
        Some(format!("the machine is stopped: 'podman machine start{suffix}'"))
    } else if has("does not exist") || has("no such machine") {
        Some("there is no such machine: 'podman machine ls' lists them, 'podman machine init' makes one".to_owned())
    } else if has("command not found") || has("No such file or directory") {
        Some(format!(
            "the machine has no lazyroot: copy a Linux build of it there (podman machine cp lazyroot \
             {}:/usr/local/bin/), or say in config.toml where it is (program)",
            machine.unwrap_or("podman-machine-default")
        ))
    } else if has("ermission denied") {
        Some(format!(
            "a rootful machine keeps its images where only root reads them: 'podman machine inspect{suffix}' says which \
             it is; 'program = \"sudo lazyroot\"' in config.toml runs lazyroot as root there"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podman_says_leads_to_the_way_out() {
        for (words, hint) in [
            ("Error: vm \"big\" is not running", "podman machine start big"),
            ("Error: big: VM does not exist", "podman machine ls"),
            ("bash: line 1: lazyroot: command not found", "podman machine cp lazyroot big:"),
            ("lazyroot: cannot open /var/lib/containers/storage: Permission denied (os error 13)", "sudo lazyroot"),
        ] {
            let advice = advice(Some("big"), words).unwrap();
            assert!(advice.contains(hint), "{advice}");
        }
        assert_eq!(advice(None, "something else"), None);
    }
}
