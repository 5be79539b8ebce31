//! Promises about `lazyroot run --hypervisor vfkit`, with a stand-in for vfkit that has QEMU behind it: the backend,
//! its API client, the sockets, the kernel and the guest are the real ones.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use lazyroot_tests::images::{debian, debian_of_its_own};
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::programs::write_script;
use lazyroot_tests::{text, vfkit};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A `PATH` with a vfkit in front.
struct Tools(TempDir);

impl Tools {
    fn standin() -> Self {
        let dir = TempDir::with_prefix("lr").unwrap();
        vfkit::path_with(env!("CARGO_BIN_EXE_vfkit-standin"), dir.path());
        Self(dir)
    }

    /// A vfkit that is this shell script.
    fn script(script: &str) -> Self {
        Self(TempDir::with_prefix("lr").unwrap()).with("vfkit", script)
    }

    /// And another program that is this shell script.
    fn with(self, name: &str, script: &str) -> Self {
        write_script(&self.0.path().join(name), script);
        self
    }

    fn command(&self, lazyroot: &Lazyroot, arguments: &[&str]) -> Command {
        let mut command = lazyroot.command(arguments);
        command.env("PATH", vfkit::path_of(self.0.path()));
        command
    }

    fn run(&self, lazyroot: &Lazyroot, arguments: &[&str]) -> Output {
        let arguments = [&["run", "--hypervisor", "vfkit", "--net", "none"], arguments].concat();
        self.command(lazyroot, &arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// What lazyroot says of a run that must fail; nothing is left of it.
    fn error(&self, lazyroot: &Lazyroot) -> String {
        let output = self.run(lazyroot, &["debian", "--", "true"]);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{errors}");
        lazyroot.assert_nothing_runs();
        errors
    }
}

fn folders(lazyroot: &Lazyroot) -> usize {
    fs::read_dir(lazyroot.home().join("run/vm")).map_or(0, |entries| entries.count())
}

#[test]
fn a_command_runs_under_vfkit_with_its_streams_and_status() {
    let (debian, tools) = (debian(), Tools::standin());
    let script = "cat; findmnt -n -o FSTYPE,SOURCE /; grep -o 'console=[a-z0-9]*' /proc/cmdline; echo oops >&2; exit 7";
    let arguments = [
        "run",
        "--hypervisor",
        "vfkit",
        "--net",
        "none",
        "--report=json",
        "--cpus",
        "2",
        "debian",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut child = tools
        .command(&debian, &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{err}");
    assert_eq!(out, "from stdin\noverlay lazyroot\nconsole=hvc0\n", "{err}");
    let report: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    assert_eq!(report["accelerator"], "vz");
}

#[test]
fn a_vm_under_vfkit_is_paused_resumed_and_stopped_through_its_api() {
    let (lazyroot, tools) = (debian(), Tools::standin());
    let ok = |arguments: &[&str]| {
        let output = tools.command(&lazyroot, arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    ok(&["run", "--hypervisor", "vfkit", "--net", "none", "-d", "--name", "apple", "debian", "--", "sleep", "1000"]);
    assert_eq!(ok(&["exec", "apple", "echo", "here"]), "here\n");
    let state = || serde_json::from_str::<serde_json::Value>(&ok(&["inspect", "apple"])).unwrap();
    ok(&["pause", "apple"]);
    assert!(state().to_string().contains("paused"), "{}", state());
    ok(&["resume", "apple"]);
    assert_eq!(ok(&["exec", "apple", "echo", "again"]), "again\n");
    assert!(ok(&["logs", "apple"]).is_ascii());
    ok(&["stop", "apple"]);
    ok(&["rm", "apple"]);
}

#[test]
fn what_the_guest_says_on_its_virtio_console_is_shown() {
    let (debian, tools) = (debian(), Tools::standin());
    let output = tools.run(&debian, &["--append", "lazyroot.mode=nonsense", "debian", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("nonsense"), "{}", text(&output.stderr));
}

#[test]
fn killing_lazyroot_ends_vfkit() {
    let (lazyroot, tools) = (debian_of_its_own(), Tools::standin());
    let arguments =
        ["run", "--hypervisor", "vfkit", "--net", "none", "debian", "--", "sh", "-c", "echo up; sleep 1000"];
    let mut child = tools.command(&lazyroot, &arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    lazyroot.assert_nothing_runs();
}

#[test]
fn vfkit_dying_under_a_vm_is_said() {
    let (lazyroot, tools) = (debian_of_its_own(), Tools::standin());
    let arguments =
        ["run", "--hypervisor", "vfkit", "--net", "none", "debian", "--", "sh", "-c", "echo up; sleep 1000"];
    let mut command = tools.command(&lazyroot, &arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    let is_vfkit = |pid: &u32| {
        let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text(name.split(|byte| *byte == 0).next().unwrap()).ends_with("/vfkit")
    };
    let vfkit = lazyroot.processes().into_iter().find(is_vfkit).expect("vfkit runs");
    kill_process(Pid::from_raw(vfkit as i32).unwrap(), Signal::KILL).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert!(errors.contains("vfkit ended under the VM with signal: 9"), "{errors}");
    lazyroot.assert_nothing_runs();
    assert_eq!(folders(&lazyroot), 0);
}

#[test]
fn a_vfkit_that_cannot_start_gives_its_own_words_and_its_age() {
    let debian = debian_of_its_own();
    let new = Tools::script(
        "[ \"$1\" != --version ] || { echo 'vfkit version: v9.0.0'; exit; }; echo 'no vmnet' >&2; exit 1",
    );
    let error = new.error(&debian);
    assert!(error.contains("no vmnet") && error.contains("exit status: 1"), "{error}");
    let old = Tools::script(
        "[ \"$1\" != --version ] || { echo 'vfkit version: v0.5.1'; exit; }; echo 'unknown device type' >&2; exit 1",
    );
    let error = old.error(&debian);
    assert!(
        ["0.5.1", "0.6.1", "brew upgrade vfkit", "unknown device"].iter().all(|word| error.contains(word)),
        "{error}"
    );
}

#[test]
fn without_vfkit_the_way_to_it_is_said() {
    let debian = debian();
    let mut command = debian.command(["run", "--hypervisor", "vfkit", "--net", "none", "debian", "--", "true"]);
    let output = command.env("PATH", "/nowhere").output().unwrap();
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert!(errors.contains("vfkit") && errors.contains("brew install vfkit"), "{errors}");
}

#[test]
fn a_home_that_vfkit_cannot_take_is_refused_by_name_and_nothing_is_left() {
    let (debian, tools) = (debian(), Tools::standin());
    let dir = TempDir::with_prefix("lr").unwrap();
    let run_in = |home: &Path| {
        fs::create_dir_all(home).unwrap();
        // The same store and kernels: nothing is imported into this home.
        for name in ["repository", "kernels", "cache"] {
            std::os::unix::fs::symlink(debian.home().join(name), home.join(name)).unwrap();
        }
        let arguments = ["run", "--hypervisor", "vfkit", "--net", "none", "debian", "--", "true"];
        let output = tools.command(&debian, &arguments).env("LAZYROOT_HOME", home).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{errors}");
        assert_eq!(fs::read_dir(home.join("run/vm")).unwrap().count(), 0, "{errors}");
        errors
    };
    let error = run_in(&dir.path().join("a,b"));
    assert!(error.contains("','") && error.contains("LAZYROOT_HOME"), "{error}");
    let error = run_in(&dir.path().join("x".repeat(90)));
    assert!(error.contains("longer than 103 bytes") && error.contains("LAZYROOT_HOME"), "{error}");
}

#[test]
fn a_guest_s_network_is_that_of_a_gvproxy_which_ends_with_the_vm() {
    let lazyroot = debian_of_its_own();
    let run = |tools: &Tools| {
        let arguments = ["run", "--hypervisor", "vfkit", "debian", "--", "ip", "-4", "-o", "address", "show"];
        tools.command(&lazyroot, &arguments).stdin(Stdio::null()).output().unwrap()
    };
    // One that takes the guest's frames for nothing: what is looked at is what the guest was told.
    let works = Tools::standin().with("gvproxy", ": >\"${2#unixgram://}\"; exec sleep 1000");
    let output = run(&works);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(out.contains("192.168.127.2/24"), "{out}{err}");
    lazyroot.assert_nothing_runs();

    let old = Tools::standin().with(
        "gvproxy",
        "[ \"$1\" != -version ] || { echo 'gvproxy version v0.6.2'; exit; }; echo 'flag not defined' >&2; exit 2",
    );
    let error = text(&run(&old).stderr);
    assert!(["0.6.2", "0.7.0", "brew upgrade", "flag not defined"].iter().all(|word| error.contains(word)), "{error}");
    let error = text(&run(&Tools::standin()).stderr);
    assert!(["gvproxy", "brew install podman", "--net none"].iter().all(|word| error.contains(word)), "{error}");
    lazyroot.assert_nothing_runs();
    assert_eq!(folders(&lazyroot), 0);
}
