//! Virtual machines in the background, of a test's own.

use std::process::Output;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::images::tiny_root;
use crate::lazyroot::Lazyroot;

/// A VM in the background, ended and removed when dropped.
pub struct Vm<'a> {
    lazyroot: &'a Lazyroot,
    /// Its name.
    pub name: String,
}

impl<'a> Vm<'a> {
    /// `lazyroot run -d` with these options, image and command.
    pub fn start(lazyroot: &'a Lazyroot, name: &str, arguments: &[&str]) -> Self {
        let said = lazyroot.ok(Self::arguments(name, arguments));
        assert_eq!(said, format!("{name}\n"));
        Self::named(lazyroot, name)
    }

    /// One that is there.
    pub fn named(lazyroot: &'a Lazyroot, name: &str) -> Self {
        Self { lazyroot, name: name.to_owned() }
    }

    /// The words of such a command line.
    pub fn arguments<'b>(name: &'b str, arguments: &[&'b str]) -> Vec<&'b str> {
        [&["run", "-d", "--hypervisor", "qemu:tcg", "--name", name], arguments].concat()
    }

    /// A verb about this VM: the words before its name, and those after.
    pub fn verb(&self, before: &[&str], after: &[&str]) -> Output {
        self.lazyroot.run([before, &[&self.name], after].concat())
    }

    /// The output of a verb that must succeed.
    pub fn ok(&self, before: &[&str], after: &[&str]) -> String {
        self.lazyroot.ok([before, &[&self.name], after].concat())
    }

    /// A shell script's output.
    pub fn sh(&self, script: &str) -> String {
        self.ok(&["exec"], &["sh", "-c", script])
    }

    /// What `lazyroot inspect` prints.
    pub fn inspect(&self) -> Value {
        serde_json::from_str(&self.ok(&["inspect"], &[])).expect("JSON")
    }

    /// Its state, in lazyroot's word.
    pub fn state(&self) -> String {
        self.inspect()["state"].as_str().expect("a word").to_owned()
    }

    /// The process that runs it, and those of its hypervisor.
    pub fn pids(&self) -> (u32, Vec<u32>) {
        let shown = self.inspect();
        let number = |value: &Value| u32::try_from(value.as_u64().expect("a number")).expect("a pid");
        (number(&shown["pid"]), shown["status"]["pids"].as_array().expect("a list").iter().map(number).collect())
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        self.lazyroot.run(["rm", "--force", &self.name]);
    }
}

/// Kills a process.
pub fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// A home of a test's own with the kernel and an image of one static program.
pub fn tiny() -> Lazyroot {
    let (lazyroot, root) = (Lazyroot::default(), tiny_root());
    lazyroot.import_kernel();
    lazyroot.import(root.path(), "tiny");
    lazyroot
}
