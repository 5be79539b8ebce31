//! Promises about VMs that run in the background, and the verbs that deal with them: real VMs under QEMU.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_tests::images::{debian, tiny_root};
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::{rootfs, text};
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
    // A thread that runs may still answer before the signal reaches it.
    wait_until("it is seen", || stuck.state() == "unresponsive");
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

/// A folder of a test's own.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn files_are_copied_both_ways_as_they_are() {
    let debian = debian();
    let vm = Vm::start(&debian, "copies", &["debian", "--", "sleep", "1000"]);
    let here = folder();
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

/// What comes of a connection: all that the other end says after `said`.
fn converse(mut stream: impl Read + Write, said: &[u8], end: impl FnOnce(&mut dyn Write)) -> Vec<u8> {
    stream.write_all(said).unwrap();
    end(&mut stream);
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    heard
}

#[test]
fn ports_lead_into_the_guest_without_a_network() {
    let debian = debian();
    let here = folder();
    let socket = here.path().join("s");
    let server = "import socket, threading, os
def serve(s):
    s.listen()
    while True:
        c, _ = s.accept()
        def answer(c=c):
            data = b''
            while part := c.recv(65536): data += part
            c.sendall(str(len(data)).encode() + b':' + data[-3:]); c.close()
        threading.Thread(target=answer).start()
t = socket.create_server(('127.0.0.1', 8080)); u = socket.socket(socket.AF_UNIX); u.bind('/run/u')
threading.Thread(target=serve, args=(t,)).start(); print('up', flush=True); serve(u)";
    let unix = format!("{}:/run/u", socket.display());
    let vm = Vm::start(
        &debian,
        "ports",
        &["--net", "none", "-p", "0:8080", "-p", &unix, "-p", "0:9", "debian", "--", "python3", "-c", server],
    );
    wait_until("the server listens", || vm.ok(&["logs"], &[]).contains("up"));
    assert_eq!(vm.sh("ls /sys/class/net"), "lo\n");
    let ports = vm.ok(&["port"], &[]);
    let port = |to: &str| {
        let line = ports.lines().find(|line| line.ends_with(&format!(" -> {to}"))).expect("it is listed");
        line.split(' ').next().unwrap().to_owned()
    };
    // Many at a time, and each direction with an end of its own.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let stream = TcpStream::connect(port("8080")).unwrap();
                let end = stream.try_clone().unwrap();
                let heard = converse(stream, &[b'x'; 200_000], |_| end.shutdown(Shutdown::Write).unwrap());
                assert_eq!(text(&heard), "200000:xxx");
            });
        }
    });
    let stream = UnixStream::connect(&socket).unwrap();
    let end = stream.try_clone().unwrap();
    assert_eq!(text(&converse(stream, b"abc", |_| end.shutdown(Shutdown::Write).unwrap())), "3:abc");
    // Nobody listens there: the connection ends, and the VM does not.
    let mut heard = Vec::new();
    let _ = TcpStream::connect(port("9")).unwrap().read_to_end(&mut heard);
    assert_eq!(heard, b"");
    // A port that is taken, and one that is none.
    let taken = format!("{}:80", port("8080"));
    let said = debian.error(Vm::arguments("second", &["-p", &taken, "debian", "--", "true"]));
    assert!(said.contains("cannot listen on") && said.contains("in use"), "{said}");
    let output = debian.run(Vm::arguments("second", &["-p", "80", "debian", "--", "true"]));
    assert_eq!((output.status.code(), text(&output.stderr).contains("maps no port")), (Some(2), true));
    let long = format!("/{}:80", "x".repeat(200));
    let said = debian.error(Vm::arguments("second", &["-p", &long, "debian", "--", "true"]));
    assert!(said.contains("longer than"), "{said}");
    assert!(!debian.ok(["ps", "-qa"]).contains("second"));
    vm.ok(&["stop"], &[]);
    assert!(!socket.exists(), "the socket goes with the VM");
}

#[test]
fn a_folder_of_the_host_is_seen_by_the_guest() {
    let debian = debian();
    let here = folder();
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
fn the_network_is_there_without_the_images_help() {
    let debian = debian();
    // A server of this machine, which the guest reaches by its gateway.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let host = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.write_all(b"from the host").unwrap();
    });
    let vm = Vm::start(&debian, "network", &["debian", "--", "sleep", "1000"]);
    let script = format!("import socket; print(socket.create_connection(('10.0.2.2', {port})).recv(99))");
    assert_eq!(vm.ok(&["exec"], &["python3", "-c", &script]), "b'from the host'\n");
    host.join().unwrap();
    assert_eq!(
        vm.sh("cat /etc/resolv.conf; ip -o route show default"),
        "nameserver 10.0.2.3\ndefault via 10.0.2.2 dev eth0 \n"
    );
    let top = vm.ok(&["top"], &[]);
    assert!(top.lines().any(|line| line.ends_with("sleep 1000")), "{top}");
}

#[test]
fn openssh_logs_in_with_the_vms_own_keys() {
    let debian = debian();
    // No init, no network, no server that runs.
    let vm = Vm::start(&debian, "secure", &["--net", "none", "debian", "--", "sleep", "1000"]);
    assert_eq!(debian.ok(["ssh", "secure", "id -un; hostname"]), "root\nsecure\n");
    assert_eq!(debian.run(["ssh", "secure", "exit 7"]).status.code(), Some(7));
    // The keys are in the VM's folder, private, and nothing of them is on the kernel's command line.
    let dir = PathBuf::from(vm.inspect()["dir"].as_str().unwrap());
    let mode = |name: &str| fs::metadata(dir.join("ssh").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("id_ed25519"), mode("lazyroot-ssh/host_key")), (0o600, 0o600));
    assert!(!vm.sh("cat /proc/cmdline").contains("ssh"));
    // For scp, rsync and the like.
    let config = folder();
    let file = config.path().join("config");
    fs::write(&file, debian.ok(["ssh", "--ssh-config", "secure"])).unwrap();
    let source = config.path().join("file");
    fs::write(&source, "copied").unwrap();
    let status = Command::new("scp").arg("-qF").arg(&file).arg(&source).arg("secure:/root/copy").status();
    assert!(status.expect("scp is installed").success());
    assert_eq!(vm.sh("cat /root/copy"), "copied");
    // A stranger's key is refused: only the VM's own opens it.
    let status =
        Command::new("ssh-keygen").args(["-qt", "ed25519", "-N", "", "-f"]).arg(config.path().join("other")).status();
    assert!(status.unwrap().success());
    let mut other = Command::new("ssh");
    other.arg("-F").arg(&file).args(["-o", "BatchMode=yes", "-i"]).arg(config.path().join("other"));
    let text_of_config = fs::read_to_string(&file).unwrap();
    let stranger: String =
        text_of_config.lines().filter(|line| !line.contains("IdentityFile")).map(|line| format!("{line}\n")).collect();
    fs::write(&file, stranger).unwrap();
    let output = other.args(["secure", "true"]).output().unwrap();
    assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    // An image without a server.
    let tiny = tiny();
    let _bare = Vm::start(&tiny, "bare", &["tiny", "--", "/bin/busybox", "sleep", "1000"]);
    let output = tiny.run(["ssh", "bare", "true"]);
    assert!(text(&output.stderr).contains("has no sshd"), "{}", text(&output.stderr));
}

#[test]
fn systemd_boots_as_in_production() {
    let lazyroot = Lazyroot::default();
    lazyroot.import_kernel();
    // An image with the marks of the machine that it was made on.
    let tree = folder();
    let copy = Command::new("cp").arg("-a").arg(rootfs().join(".")).arg(tree.path()).status().unwrap();
    assert!(copy.success());
    fs::write(tree.path().join("etc/hostname"), "builder\n").unwrap();
    fs::write(tree.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let labelled = tree.path().join("etc/issue");
    xattr::set(&labelled, "security.selinux", b"system_u:object_r:etc_t:s0\0").unwrap();
    lazyroot.import(tree.path(), "systemd");
    let here = folder();
    let unit = here.path().join("hello.service");
    fs::write(
        &unit,
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nImportCredential=greeting\n\
        ExecStart=/bin/sh -c 'cat $CREDENTIALS_DIRECTORY/greeting >/var/tmp/hello'\n",
    )
    .unwrap();
    let greeting = here.path().join("greeting");
    fs::write(&greeting, b"hello \xff").unwrap();
    let credential = format!("greeting={}", greeting.display());
    let options = ["--credential", &credential, "--unit", unit.to_str().unwrap(), "--wait", "ssh", "systemd"];
    let vm = Vm::start(&lazyroot, "production", &options);
    // Ready means that systemd says so.
    assert!(["running", "degraded"].contains(&vm.sh("systemctl is-system-running; true").trim()));
    assert_eq!(vm.sh("hostname; hostnamectl --static 2>/dev/null; true").lines().next(), Some("production"));
    assert_ne!(vm.sh("cat /etc/machine-id").trim(), "0123456789abcdef0123456789abcdef");
    assert_eq!(vm.ok(&["exec"], &["od", "-An", "-c", "/var/tmp/hello"]).trim(), "h   e   l   l   o     377");
    assert_eq!(vm.sh("cat /proc/cmdline").matches("greeting").count(), 0);
    // /etc and /var can be written; labels are the image's.
    vm.sh("echo x >/etc/new; mkdir -p /var/lib/new; echo y >/var/lib/new/file");
    let label = "python3 -c 'import os; print(os.getxattr(\"/etc/issue\", \"security.selinux\"))'";
    assert_eq!(vm.sh(label), "b'system_u:object_r:etc_t:s0\\x00'\n");
    // Containers can: their storage is no overlay, and what they do to start works.
    assert_eq!(vm.sh("findmnt -n -o FSTYPE -T /var/lib/containers"), "tmpfs\n");
    let container = "cd /var/lib/containers; mkdir -p upper work merged; \
        mount -t overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work overlay merged; \
        unshare --mount --pid --fork --uts chroot merged sh -c 'echo changed >/etc/issue; cat /etc/issue; id -un'";
    assert_eq!(vm.sh(container), "changed\nroot\n");
    // What a reboot or shutdown would do is done: units stop before the end.
    vm.ok(&["stop", "--time", "120"], &[]);
    assert_eq!(vm.state(), "exited");
    // A unit that fails, one that is not there, and one that is waited for.
    let bad = here.path().join("bad.service");
    fs::write(&bad, "[Service]\nType=oneshot\nExecStart=/bin/false\n").unwrap();
    let said =
        lazyroot.error(Vm::arguments("bad", &["--unit", bad.to_str().unwrap(), "--wait", "bad.service", "systemd"]));
    assert!(said.contains("bad.service has failed"), "{said}");
    let said = lazyroot.error(Vm::arguments("none", &["--wait", "none.service", "systemd"]));
    assert!(said.contains("no unit none.service"), "{said}");
    let _early = Vm::start(&lazyroot, "early", &["--wait", "systemd-journald.service", "systemd"]);
}

#[test]
fn an_oci_image_runs_its_entrypoint() {
    let lazyroot = Lazyroot::default();
    lazyroot.import_kernel();
    let (root, oci) = (tiny_root(), folder());
    let layout = oci.path().join("image");
    write_oci_image(root.path(), &layout, &["/bin/busybox", "sh", "-c", "echo $GREETING; pwd; id -u; exit 4"]);
    lazyroot.ok(["image", "import", &format!("oci:{}", layout.display()), "--name", "entry"]);
    let output = lazyroot.run(["run", "--hypervisor", "qemu:tcg", "entry"]);
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("hello\n/srv\n77\n", Some(4)),
        "{}",
        text(&output.stderr)
    );
    let vm = Vm::start(&lazyroot, "entry", &["entry"]);
    assert_eq!(lazyroot.ok(["wait", "entry"]), "4\n");
    assert_eq!(vm.ok(&["logs"], &[]), "hello\n/srv\n77\n");
}

/// An OCI layout with one layer, the tree at `root`, by skopeo's rules and without its help.
fn write_oci_image(root: &Path, layout: &Path, entrypoint: &[&str]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for dir in ["srv", "usr"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let blob = |content: &[u8]| {
        let digest: String = ring::digest::digest(&ring::digest::SHA256, content)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&digest), content).unwrap();
        (format!("sha256:{digest}"), content.len())
    };
    let layer =
        Command::new("tar").args(["--sort=name", "--owner=0", "--group=0", "-cC"]).arg(root).arg(".").output().unwrap();
    assert!(layer.status.success());
    let (layer, layer_size) = blob(&layer.stdout);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]},
        "config": {"Entrypoint": entrypoint, "Env": ["GREETING=hello"], "WorkingDir": "/srv", "User": "77"},
    });
    let (config, config_size) = blob(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = blob(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size}],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
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

#[test]
fn a_persistent_vm_keeps_what_its_guest_writes() {
    let debian = debian();
    let words = ["--persist=2G", "debian", "--", "sleep", "10000"];
    let vm = Vm::start(&debian, "kept", &words);
    assert_eq!(
        vm.sh("findmnt -n -o FSTYPE /; echo first >/root/file; rm /etc/issue; mkdir -p /etc/new/deep; nproc"),
        "overlay\n1\n"
    );
    let error = debian.error(["snapshot", "kept", "one"]);
    assert!(error.contains("is running"), "{error}");
    vm.ok(&["stop"], &[]);
    assert!(debian.ok(["ps", "-a"]).contains("kept"));
    debian.ok(["snapshot", "kept", "one"]);
    debian.ok(["resize", "kept", "4G"]);
    debian.ok(["update", "--cpus", "2", "--memory", "700M", "kept"]);
    // A copy of its own from here on.
    debian.ok(["fork", "kept", "forked"]);
    assert_eq!(debian.ok(["start", "kept"]), "kept\n");
    let script = "cat /root/file; ls /etc/issue /etc/new; nproc; hostname; echo second >/root/file";
    assert_eq!(
        vm.sh(&format!("{{ {script}; }} 2>&1")),
        "first\nls: cannot access '/etc/issue': No such file or directory\n/etc/new:\ndeep\n2\nkept\n"
    );
    let error = debian.error(["start", "kept"]);
    assert!(error.contains("is running"), "{error}");
    // Its file system has grown with its disk: more than it had fits. What is removed takes no room here.
    vm.sh("fallocate -l 2500M /root/large && rm /root/large");
    // Whatever ends it: what was synced is there.
    vm.sh("sync");
    kill(vm.pids().0);
    wait_until("it is lost", || vm.state() == "lost");
    debian.ok(["start", "kept"]);
    assert_eq!(vm.sh("cat /root/file"), "second\n");
    let forked = Vm { lazyroot: &debian, name: "forked".into() };
    debian.ok(["start", "forked"]);
    assert_eq!(forked.sh("cat /root/file; hostname"), "first\nforked\n");
    forked.ok(&["stop"], &[]);
    // What the guests made is an ext4 that others find nothing wrong with, once the journal is replayed.
    let disk = debian.home().join("vms/forked/disk.raw");
    let check = |how: &str| Command::new("/sbin/e2fsck").arg(how).arg(&disk).output().expect("e2fsck is there");
    check("-p");
    let said = check("-fn");
    assert!(said.status.success(), "{}", text(&said.stdout));
    assert!(fs::metadata(&disk).unwrap().blocks() * 512 < 64 << 20, "it is sparse no more");
    debian.ok(["fork", "kept@one", "older"]);
    let older = Vm { lazyroot: &debian, name: "older".into() };
    assert_eq!(older.state(), "stopped");
    // What cannot be.
    for (words, said) in [
        (&["start", "nobody"][..], "there is no VM 'nobody'"),
        (&["fork", "kept@none", "x"], "no snapshot 'none'"),
        (&["fork", "older", "kept"], "is running already"),
        (&["resize", "older", "1G"], "cannot shrink"),
    ] {
        let error = debian.error(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    older.ok(&["rm"], &[]);
    vm.ok(&["rm", "--force"], &[]);
    assert!(debian.error(["start", "kept"]).contains("there is no VM 'kept'"));
    // A disk that cannot be had is an error, and leaves nothing.
    let error = debian.error(Vm::arguments("huge", &["--persist=4000000G", "debian", "--", "true"]));
    assert!(error.contains("to 4 TiB"), "{error}");
    let error = debian.error(Vm::arguments("small", &["--persist=1M", "debian", "--", "true"]));
    assert!(error.contains("give 128 MiB"), "{error}");
    // One whose command cannot be run is none either.
    let output = debian.run(Vm::arguments("none", &["--persist", "debian", "--", "/no/such/program"]));
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    let left = debian.ok(["ps", "-qa"]);
    assert!(!["huge", "small", "none"].iter().any(|name| left.contains(name)), "{left}");
}

/// Objects in the store of a home, and their bytes.
fn objects(lazyroot: &Lazyroot) -> std::collections::BTreeMap<PathBuf, u64> {
    let mut found = std::collections::BTreeMap::new();
    for dir in fs::read_dir(lazyroot.home().join("repository/objects")).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            let file = file.unwrap();
            found.insert(file.path(), file.metadata().unwrap().len());
        }
    }
    found
}

#[test]
fn a_vm_with_its_changes_becomes_an_image_that_boots() {
    let debian = debian();
    let vm = Vm::start(&debian, "base", &["--persist=1G", "debian", "--", "sleep", "10000"]);
    let python = "python3 -c 'import os; ";
    // All that an overlay can say of lower files, and what is new.
    vm.sh(&format!(
        "set -e; cd /root; head -c 300000 /dev/zero | tr '\\0' n >new; echo small >small; ln new twin; ln -s new link; mkfifo pipe
        rm /etc/issue; rm -r /usr/share/common-licenses; mkdir /usr/share/common-licenses; echo own >/usr/share/common-licenses/own
        mv /etc/apt /etc/renamed; echo more >/etc/renamed/more; mv /usr/share/base-files /srv/moved; rm /srv/moved/motd
        chmod 700 /usr/bin/python3.13; mv /usr/bin/tac /usr/bin/cat-backwards; chown 7:8 /etc/fstab /usr/bin/id
        {python} os.setxattr(\"/root/new\", \"user.colour\", b\"blue\"); os.setxattr(\"/usr/bin/id\", \"user.a\", b\"b\")'
        mv /etc/debian_version /etc/moved; echo more >>/etc/moved; mkdir /root/dir; mv /etc/moved /root/dir
        {python} os.setxattr(\"/root/small\", \"user.a=b\", b\"c\")'; echo old >/root/old; touch -d @-1000000 /root/old
        rm /etc/issue.net; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/etc/issue.net\")'
        echo changed >>/etc/passwd; touch -d @1000000000.123456789 /root/small; echo of the VM >/etc/resolv.conf; rm -f /etc/hostname"
    ));
    let look = format!(
        "cd /root; wc -c <new; cat small; stat -c %h new; readlink link; stat -c %F pipe; stat -c %y small | cut -d. -f1
        ls /etc/issue /etc/apt /usr/share/base-files /usr/bin/tac 2>&1 | wc -l; ls /usr/share/common-licenses
        ls /etc/renamed | grep -c . ; cat /etc/renamed/more; ls /srv/moved | sort; stat -c %a /usr/bin/python3.13
        cat-backwards /etc/fstab | wc -l; stat -c %u:%g /etc/fstab /usr/bin/id; /usr/bin/id -u; tail -1 /etc/passwd
        cat /root/dir/moved; ls /etc/debian_version 2>&1; stat -c %Y /root/old; {python} print(os.getxattr(\"/root/small\", \"user.a=b\"))'
        {python} print(os.getxattr(\"/root/new\", \"user.colour\"), os.getxattr(\"/usr/bin/id\", \"user.a\"))'
        find / -xdev -type f | grep -v '^/\\(root\\|etc\\|var\\|run\\)' | sort | md5sum"
    );
    let seen = vm.sh(&look);
    let before = objects(&debian);
    // While it runs.
    let said = debian.ok(["commit", "base", "mine:1"]);
    assert!(said.starts_with("sha256:") && said.ends_with(" mine:1\n"), "{said}");
    let after = objects(&debian);
    let new: Vec<u64> = after.iter().filter(|(path, _)| !before.contains_key(*path)).map(|(_, bytes)| *bytes).collect();
    // The new file, the changed one, and the manifest.
    assert_eq!(new.len(), 3, "{new:?}");
    assert!(new.contains(&300_000), "{new:?}");
    let fresh = Vm::start(&debian, "fresh", &["mine:1", "--", "sleep", "10000"]);
    assert_eq!(fresh.sh(&look), seen);
    assert_eq!(fresh.sh("cat /etc/resolv.conf | grep -c VM; true"), "0\n");
    // A socket is nobody's any more, and the file that it took the place of is gone.
    assert_eq!(fresh.sh("ls /etc | grep -c issue; true"), "0\n");
    // Once more from what was committed, by a VM in memory: what is removed is gone, and what was there is not written.
    fresh.sh("rm -r /root/new /root/twin /srv/moved; echo again >/root/again");
    debian.ok(["commit", "fresh", "mine:2"]);
    let again = Vm::start(&debian, "again", &["mine:2", "--", "sleep", "10000"]);
    assert_eq!(
        again.sh("cat /root/again; ls /root /srv; cat /etc/renamed/more"),
        "again\n/root:\nagain\ndir\nlink\nold\npipe\nsmall\n\n/srv:\nmore\n"
    );
    assert_eq!(objects(&debian).len(), after.len() + 1, "only a manifest is new");
    // Stopped: the same image, to the bit, as nothing has changed.
    vm.ok(&["stop"], &[]);
    let stopped = debian.ok(["commit", "base", "mine:3"]);
    assert_eq!(stopped.split(' ').next(), said.split(' ').next());
    assert_eq!(objects(&debian).len(), after.len() + 1);
    // Its image is needed by it, whether it runs or not, and by its fork.
    let image = vm.inspect()["image"].as_str().unwrap().to_owned();
    debian.ok(["fork", "base", "copy"]);
    let copy = Vm { lazyroot: &debian, name: "copy".into() };
    let error = debian.error(["image", "rm", "debian"]);
    assert!(error.contains("VM base (stopped)") && error.contains("VM copy (stopped)"), "{error}");
    vm.ok(&["rm"], &[]);
    let error = debian.error(["image", "rm", &image]);
    assert!(!error.contains("VM base") && error.contains("VM copy (stopped)"), "{error}");
    debian.ok(["store", "gc"]);
    debian.ok(["start", "copy"]);
    assert_eq!(copy.sh("cat /root/small"), "small\n");
    // What cannot be.
    for (words, said) in
        [(&["commit", "nobody", "x"][..], "no VM 'nobody'"), (&["commit", "copy", "UPPER CASE"], "UPPER CASE")]
    {
        let error = debian.error(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    again.ok(&["stop"], &[]);
    let error = debian.error(["commit", "again", "x"]);
    assert!(error.contains("--persist"), "{error}");
}

#[test]
fn a_full_disk_is_the_guests_error_and_containers_of_a_persistent_vm_are_on_it() {
    let debian = debian();
    let vm = Vm::start(&debian, "full", &["--persist=256M", "debian", "--", "sleep", "10000"]);
    assert_eq!(vm.sh("findmnt -n -o FSTYPE -T /var/lib/containers; echo kept >/var/lib/containers/file"), "ext4\n");
    let said = vm.sh("head -c 400M /dev/zero 2>&1 >/root/large; true");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(vm.sh("rm /root/large; echo works >/root/file; cat /root/file"), "works\n");
    vm.ok(&["stop"], &[]);
    debian.ok(["start", "full"]);
    assert_eq!(vm.sh("cat /root/file /var/lib/containers/file"), "works\nkept\n");
    let error = debian.error(Vm::arguments("full", &["--persist", "debian", "--", "true"]));
    assert!(error.contains("'full' is running already"), "{error}");
    for words in [&["update", "--cpus", "2", "full"][..], &["resize", "full", "1G"], &["fork", "full", "other"]] {
        let error = debian.error(words);
        assert!(error.contains("is running: 'lazyroot stop full' first"), "{error}");
    }
    vm.ok(&["stop"], &[]);
    let error = debian.error(Vm::arguments("full", &["--persist", "debian", "--", "true"]));
    assert!(error.contains("lazyroot rm full"), "{error}");
    let error = debian.error(["update", "--kernel", "1.2.3", "full"]);
    assert!(error.contains("1.2.3"), "{error}");
}
