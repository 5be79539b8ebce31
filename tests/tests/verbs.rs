//! Promises about VMs that run in the background, and the verbs that deal with them: real VMs under QEMU.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use lazyroot_tests::images::debian;
use lazyroot_tests::lazyroot::{Lazyroot, give_environment};
use lazyroot_tests::temporary;
use lazyroot_tests::text;
use lazyroot_tests::vms::{Vm, kill, tiny};
use lazyroot_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn stop_and_rm_without_a_name_ask_for_one() {
    let lazyroot = Lazyroot::default();
    for words in [&["stop"][..], &["rm"], &["rm", "--force"]] {
        let output = lazyroot.run(words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("<VM>...") && !said.contains("--all"), "{said}");
    }
    lazyroot.ok(["stop", "--all"]);
    lazyroot.ok(["rm", "--all"]);
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
    let script = "echo out; /bin/busybox sleep 1; echo err >&2; /bin/busybox sleep 1; echo late; exit 5";
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
    until("no process is left", || tiny.processes().is_empty());
}

#[test]
fn whatever_is_killed_ps_tells_the_truth_and_rm_cleans_up() {
    let tiny = tiny();
    let start = |name: &str| Vm::start(&tiny, name, &["tiny", "--", "/bin/busybox", "sleep", "1000"]);
    // lazyroot itself: nothing outlives it.
    let lost = start("lost");
    let (pid, hypervisor) = lost.pids();
    kill(pid);
    until("the hypervisor has ended", || hypervisor.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()));
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
    // A thread that runs may still answer before the signal reaches it.
    until("it is seen", || stuck.state() == "unresponsive");
    stuck.ok(&["rm", "--force"], &[]);
    tiny.ok(["rm", "--all"]);
    assert_eq!(tiny.ok(["ps", "-qa"]), "");
    until("no process is left", || tiny.processes().is_empty());
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
    until("the second is listed", || tiny.ok(["ps", "-q"]).contains("web-2"));
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
    let dir = temporary();
    let first_seen = dir.path().join("first-seen");
    // script(1) gives lazyroot a terminal; stty(1) resizes that once the guest has told the first size.
    let program = debian.command(["shell", &vm.name]);
    let lazyroot = program.get_program().to_string_lossy().into_owned();
    let inner = format!(
        "stty rows 33 cols 99; (until [ -e '{}' ]; do sleep 0.1; done; stty -F /dev/tty rows 44 cols 55) & exec '{lazyroot}' shell sized",
        first_seen.display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &inner, "/dev/null"]);
    give_environment(&mut script, &program);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1) is installed");
    let mut stdin = child.stdin.take().unwrap();
    // Until the new size is there; then out, with a status of its own.
    stdin
        .write_all(b"stty size; while [ \"$(stty size)\" != '44 55' ]; do sleep 0.1; done; echo resized; exit 9\n")
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut said = String::new();
    while !said.contains("33 99") {
        let mut bytes = [0; 1000];
        let len = stdout.read(&mut bytes).unwrap();
        assert!(len > 0, "{said}");
        said.push_str(&text(&bytes[..len]));
    }
    fs::write(&first_seen, "").unwrap();
    stdout.read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(said.contains("resized\r\n"), "{said}");
    assert_eq!(status.code(), Some(9), "{said}");
}

#[test]
fn files_are_copied_both_ways_as_they_are() {
    let debian = debian();
    let vm = Vm::start(&debian, "copies", &["debian", "--", "sleep", "1000"]);
    let here = temporary();
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    // Far more than the transport takes at once.
    fs::write(tree.join("sub/large"), vec![b'l'; 3_000_000]).unwrap();
    fs::write(tree.join("script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("script", tree.join("link")).unwrap();
    xattr::set(tree.join("script"), "user.colour", b"blue").unwrap();
    let text_of = |path: &Path| path.to_str().unwrap().to_owned();
    debian.ok(["cp", &text_of(&tree), "copies:/srv"]);
    assert_eq!(
        vm.sh("/srv/tree/link; wc -c </srv/tree/sub/large; stat -c %a:%U /srv/tree/script"),
        "ran\n3000000\n755:root\n"
    );
    let script = "python3 -c 'import os; print(os.getxattr(\"/srv/tree/script\", \"user.colour\"))'";
    assert_eq!(vm.sh(script), "b'blue'\n");
    // And back, under another name.
    vm.sh("chmod 4750 /srv/tree/script");
    let back = here.path().join("back");
    debian.ok(["cp", "copies:/srv/tree", &text_of(&back)]);
    assert_eq!(fs::read(back.join("sub/large")).unwrap(), vec![b'l'; 3_000_000]);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("script"));
    assert_eq!(xattr::get(back.join("script"), "user.colour").unwrap().unwrap(), b"blue");
    // No program of a guest's runs here as its owner.
    assert_eq!(fs::metadata(back.join("script")).unwrap().permissions().mode() & 0o7777, 0o750);
    // What cannot be.
    for (source, target, said) in [
        ("copies:/no/such/file", "/tmp", "/no/such/file"),
        ("/no/such/file", "copies:/tmp", "/no/such/file"),
        ("/etc/hostname", "copies:/no/such/folder/x", "no folder /no/such/folder"),
        ("/etc/hostname", "copies:relative", "no absolute path"),
        ("/etc/hostname", "/tmp", "one of the two must be VM:PATH"),
        ("copies:/etc", "copies:/tmp", "only one"),
    ] {
        let error = debian.error(["cp", source, target]);
        assert!(error.contains(said), "{source} {target}: {error}");
    }
    // A disk that fills up: an error that says so, and nothing half-made.
    vm.sh("mkdir /small && mount -t tmpfs -o size=1m tmpfs /small");
    let error = debian.error(["cp", &text_of(&tree.join("sub/large")), "copies:/small/large"]);
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(vm.sh("ls -A /small"), "");
}

#[test]
fn a_folder_of_the_host_is_seen_by_the_guest() {
    let debian = debian();
    let here = temporary();
    for name in ["read", "write"] {
        fs::create_dir(here.path().join(name)).unwrap();
    }
    fs::write(here.path().join("read/file"), "from the host").unwrap();
    let volume = |name: &str, rest: &str| format!("{}:{rest}", here.path().join(name).display());
    let volumes = [volume("read", "/mnt/read:ro"), volume("write", "/mnt/new/write")];
    let vm = Vm::start(&debian, "volumes", &["-v", &volumes[0], "-v", &volumes[1], "debian", "--", "sleep", "1000"]);
    assert_eq!(vm.sh("cat /mnt/read/file; echo from the guest >/mnt/new/write/file"), "from the host");
    assert_eq!(fs::read_to_string(here.path().join("write/file")).unwrap(), "from the guest\n");
    let output = vm.verb(&["exec"], &["touch", "/mnt/read/x"]);
    assert!(text(&output.stderr).contains("Read-only"), "{}", text(&output.stderr));
    // What the host changes is seen at once.
    fs::write(here.path().join("read/later"), "later").unwrap();
    assert_eq!(vm.sh("cat /mnt/read/later"), "later");
    for (wrong, said) in [("/no/such/folder:/mnt", "/no/such/folder"), ("/tmp:mnt", "no absolute path")] {
        let output = debian.run(Vm::arguments("wrong", &["-v", wrong, "debian", "--", "true"]));
        assert!(!output.status.success() && text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn twenty_vms_at_once_all_come_up() {
    let tiny = tiny();
    let names: Vec<String> = (0..20).map(|number| format!("many-{number}")).collect();
    let vms: Vec<Vm> = thread::scope(|scope| {
        let starting: Vec<_> = names
            .iter()
            .map(|name| {
                let tiny = &tiny;
                scope.spawn(move || {
                    Vm::start(tiny, name, &["--memory", "192M", "tiny", "--", "/bin/busybox", "sleep", "10000"])
                })
            })
            .collect();
        starting.into_iter().map(|vm| vm.join().unwrap()).collect()
    });
    assert_eq!(tiny.ok(["ps"]).matches(" running ").count(), 20);
    for vm in &vms {
        assert_eq!(vm.ok(&["exec"], &["/bin/busybox", "hostname"]).trim(), vm.name);
    }
    tiny.ok(["rm", "--all", "--force"]);
    assert_eq!(tiny.ok(["ps", "-qa"]), "");
}
