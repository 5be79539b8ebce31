//! Promises about VMs that run in the background, and the verbs that deal with them: real VMs under QEMU.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_tests::images::{debian, tiny_root};
use lazyroot_tests::lazyroot::Lazyroot;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A VM in the background, ended and removed when dropped.
struct Vm<'a> {
    lazyroot: &'a Lazyroot,
    name: String,
}

impl<'a> Vm<'a> {
    /// `lazyroot run -d` with these options, image and command.
    fn start(lazyroot: &'a Lazyroot, name: &str, arguments: &[&str]) -> Self {
        let said = lazyroot.ok(Self::arguments(name, arguments));
        assert_eq!(said, format!("{name}\n"));
        Self { lazyroot, name: name.to_owned() }
    }

    fn arguments<'b>(name: &'b str, arguments: &[&'b str]) -> Vec<&'b str> {
        [&["run", "-d", "--hypervisor", "qemu:tcg", "--name", name], arguments].concat()
    }

    /// A verb about this VM: the words before its name, and those after.
    fn verb(&self, before: &[&str], after: &[&str]) -> Output {
        self.lazyroot.run([before, &[&self.name], after].concat())
    }

    fn ok(&self, before: &[&str], after: &[&str]) -> String {
        self.lazyroot.ok([before, &[&self.name], after].concat())
    }

    /// A shell script's output.
    fn sh(&self, script: &str) -> String {
        self.ok(&["exec"], &["sh", "-c", script])
    }

    fn inspect(&self) -> Value {
        serde_json::from_str(&self.ok(&["inspect"], &[])).expect("JSON")
    }

    fn state(&self) -> String {
        self.inspect()["state"].as_str().expect("a word").to_owned()
    }

    /// The process that runs it, and those of its hypervisor.
    fn pids(&self) -> (u32, Vec<u32>) {
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// A home of a test's own with the kernel and an image of one static program.
fn tiny() -> Lazyroot {
    let (lazyroot, root) = (Lazyroot::default(), tiny_root());
    lazyroot.import_kernel();
    lazyroot.import(root.path(), "tiny");
    lazyroot
}

/// Until `done`, which must come within a time that a busy machine needs.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_vm_in_the_background_is_there_for_every_verb() {
    let debian = debian();
    let vm = Vm::start(&debian, "web", &["debian"]);
    assert!(debian.ok(["ps"]).lines().any(|line| line.starts_with("web ") && line.contains("running")));
    let output =
        vm.verb(&["exec", "-u", "daemon", "-w", "/usr", "-e", "A=b c"], &["sh", "-c", "id -un; pwd; echo $A; exit 3"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("daemon\n/usr\nb c\n", Some(3)));
    let shown = vm.inspect();
    assert_eq!(shown["image_name"], "debian:latest");
    assert!(shown["status"]["served"]["bytes"].as_u64().unwrap() > 0);
    assert!(shown["timings"]["ready"]["secs"].as_u64().is_some(), "{shown}");
    assert!(vm.ok(&["logs"], &[]).contains("Linux version"), "the console");
    assert!(vm.ok(&["logs", "--timings"], &[]).contains("ready after"));
    // Input goes on with -i only.
    let mut cat =
        debian.command(["exec", "-i", "web", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(text(&cat.wait_with_output().unwrap().stdout), "through");
    assert_eq!(vm.sh("cat; echo end"), "end\n");
    // Arguments are bytes.
    let odd =
        [OsStr::new("exec"), OsStr::new("web"), OsStr::new("printf"), OsStr::new("%s"), OsStr::from_bytes(b"\xff\xfe")];
    assert_eq!(debian.run(odd).stdout, b"\xff\xfe");

    vm.ok(&["pause"], &[]);
    assert_eq!(vm.state(), "paused");
    assert!(debian.error(["exec", "web", "true"]).contains("lazyroot resume"));
    vm.ok(&["resume"], &[]);
    assert_eq!(vm.sh("echo again"), "again\n");

    assert!(debian.error(["rm", "web"]).contains("is running"));
    // Its init gets the time to stop what it started.
    vm.ok(&["stop", "--time", "60"], &[]);
    assert_eq!(vm.state(), "exited");
    assert!(
        vm.ok(&["logs"], &[]).contains("Power down") || vm.ok(&["logs"], &[]).contains("Powering off"),
        "{}",
        vm.ok(&["logs"], &[])
    );
    assert_eq!(debian.ok(["wait", "web"]), "0\n");
    assert!(debian.error(["exec", "web", "true"]).contains("has ended"));
    vm.ok(&["stop"], &[]);
    vm.ok(&["rm"], &[]);
    assert!(debian.error(["inspect", "web"]).contains("no VM 'web'"));
}

#[test]
fn a_command_in_the_background_leaves_its_output_and_its_status() {
    let tiny = tiny();
    let script = "echo out; echo err >&2; /bin/busybox sleep 2; echo late; exit 5";
    let vm = Vm::start(&tiny, "job", &["tiny", "--", "/bin/busybox", "sh", "-c", script]);
    let follower = tiny.command(["logs", "-f", "job"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(tiny.ok(["wait", "job"]), "5\n");
    assert_eq!(text(&follower.wait_with_output().unwrap().stdout), "out\nerr\nlate\n");
    assert_eq!(vm.ok(&["logs"], &[]), "out\nerr\nlate\n");
    assert!(tiny.ok(["ps", "--all"]).contains("exited (5)"));
    assert!(!tiny.ok(["ps"]).contains("job"));
    // Its name is taken until it is removed.
    assert!(tiny.error(Vm::arguments("job", &["tiny", "--", "/bin/busybox", "true"])).contains("lazyroot rm job"));
    // One that nobody asked to keep.
    let gone = Vm::start(&tiny, "gone", &["--rm", "tiny", "--", "/bin/busybox", "sleep", "1000"]);
    gone.ok(&["stop"], &[]);
    assert!(!tiny.ok(["ps", "--all"]).contains("gone"));
    tiny.ok(["rm", "--all"]);
    assert_eq!(tiny.ok(["ps", "-qa"]), "");
}

#[test]
fn one_that_does_not_come_up_says_why_and_leaves_nothing() {
    let tiny = tiny();
    let output = tiny.run(Vm::arguments("x", &["tiny", "--", "/no/such/program"]));
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("/no/such/program"), "{}", text(&output.stderr));
    let said =
        tiny.error(Vm::arguments("x", &["--append", "rdinit=/none init=/none", "tiny", "--", "/bin/busybox", "true"]));
    assert!(said.contains("panic"), "{said}");
    let said = tiny.error(Vm::arguments("x", &["tiny"]));
    assert!(said.contains("no entrypoint"), "{said}");
    assert_eq!(tiny.ok(["ps", "-qa"]), "");
    wait_until("no process is left", || tiny.processes().is_empty());
}

#[test]
fn whatever_is_killed_ps_tells_the_truth_and_rm_cleans_up() {
    let tiny = tiny();
    let start = |name: &str| Vm::start(&tiny, name, &["tiny", "--", "/bin/busybox", "sleep", "1000"]);
    // lazyroot itself: nothing outlives it.
    let lost = start("lost");
    let (pid, hypervisor) = lost.pids();
    kill(pid);
    wait_until("the hypervisor has ended", || {
        hypervisor.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}")).exists())
    });
    assert_eq!(lost.state(), "lost");
    assert!(tiny.error(["wait", "lost"]).contains("is lost"));
    assert!(!tiny.ok(["ps"]).contains("lost"));
    // Each process of the hypervisor.
    for victim in 0..hypervisor.len() {
        let name = format!("victim-{victim}");
        let vm = start(&name);
        kill(vm.pids().1[victim]);
        assert!(tiny.error(["wait", &name]).contains("ended"));
        assert_eq!(vm.state(), "failed");
        assert!(vm.inspect()["reason"].as_str().unwrap().contains("ended"), "{}", vm.inspect());
    }
    // A lazyroot that hangs: it is seen, and can be ended all the same.
    let stuck = start("stuck");
    kill_process(Pid::from_raw(stuck.pids().0 as i32).unwrap(), Signal::STOP).unwrap();
    assert_eq!(stuck.state(), "unresponsive");
    stuck.ok(&["rm", "--force"], &[]);
    tiny.ok(["rm", "--all"]);
    assert_eq!(tiny.ok(["ps", "-qa"]), "");
    wait_until("no process is left", || tiny.processes().is_empty());
}

#[test]
fn names_that_mean_no_vm_or_several_are_refused_with_those_there_are() {
    let tiny = tiny();
    assert!(tiny.error(["exec", "web", "true"]).contains("there is no VM 'web'"));
    // A VM in the foreground is one too.
    let sleep = ["tiny", "--", "/bin/busybox", "sleep", "1000"];
    let _one = Vm::start(&tiny, "web-1", &sleep);
    let mut two = tiny.command(["run", "--hypervisor", "qemu:tcg", "--name", "web-2"].iter().chain(&sleep));
    let mut two = two.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the second is listed", || tiny.ok(["ps", "-q"]).contains("web-2"));
    let said = tiny.error(["exec", "web", "true"]);
    assert!(said.contains("web-1, web-2"), "{said}");
    let said = tiny.error(["stop", "nobody"]);
    assert!(said.contains("there are: web-1, web-2"), "{said}");
    assert_eq!(tiny.ok(["exec", "web-2", "/bin/busybox", "echo", "hello"]), "hello\n");
    let output = tiny.run(["exec", "web-2", "no-such-program"]);
    assert_eq!((output.status.code(), text(&output.stderr).contains("no-such-program")), (Some(127), true));
    tiny.ok(["stop", "web-2"]);
    let status = two.wait().unwrap();
    let mut said = String::new();
    two.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    // 143: its command got SIGTERM.
    assert_eq!(status.code(), Some(143), "{said}");
}

#[test]
fn a_shell_has_a_terminal_that_is_resized_with_ours() {
    let debian = debian();
    let vm = Vm::start(&debian, "sized", &["debian", "--", "sleep", "1000"]);
    // script(1) gives lazyroot a terminal; stty(1) resizes that.
    let program = debian.command(["shell", &vm.name]);
    let lazyroot = program.get_program().to_string_lossy().into_owned();
    let inner =
        format!("stty rows 33 cols 99; (sleep 3; stty -F /dev/tty rows 44 cols 55) & exec '{lazyroot}' shell sized");
    let mut script = Command::new("script");
    script.args(["-qec", &inner, "/dev/null"]).env("LAZYROOT_HOME", debian.home());
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1) is installed");
    let mut stdin = child.stdin.take().unwrap();
    // Until the new size is there; then out, with a status of its own.
    stdin
        .write_all(b"stty size; while [ \"$(stty size)\" != '44 55' ]; do sleep 0.1; done; echo resized; exit 9\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("33 99") && said.contains("resized\r\n"), "{said}");
    assert_eq!(output.status.code(), Some(9), "{said}");
}
