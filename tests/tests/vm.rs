//! Promises about `lazyroot run`: real VMs under QEMU, Debian's kernel, a real Debian image.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use lazyroot_tests::images::{debian, debian_of_its_own, tiny_root};
use lazyroot_tests::lazyroot::{Lazyroot, give_environment};
use lazyroot_tests::text;
use lazyroot_tests::wait::until;
use rustix::process::{Pid, Signal, kill_process};

/// `lazyroot run` with these options, image and command.
fn run(lazyroot: &Lazyroot, arguments: &[&str]) -> Command {
    lazyroot.command(["run", "--hypervisor", "qemu:tcg"].iter().chain(arguments))
}

fn output(lazyroot: &Lazyroot, arguments: &[&str]) -> Output {
    run(lazyroot, arguments).stdin(Stdio::null()).output().expect("lazyroot starts")
}

/// Nothing of a VM is left: no process, no folder.
fn assert_nothing_left(lazyroot: &Lazyroot) {
    lazyroot.assert_nothing_runs();
    let left: Vec<_> =
        fs::read_dir(lazyroot.home().join("run/vm")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_command_runs_in_the_image_with_its_streams_and_status() {
    let debian = debian();
    let script = "cat; . /etc/os-release; echo $ID; findmnt -n -o FSTYPE,SOURCE /; \
                  python3 -c 'import ssl; print(\"python\")'; echo oops >&2; exit 7";
    let mut child = run(&debian, &["debian", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{err}");
    assert_eq!(out, "from stdin\ndebian\noverlay lazyroot\npython\n", "{err}");
    assert_eq!(err, "oops\n");
}

#[test]
fn options_reach_the_command_and_the_report_adds_up() {
    let debian = debian();
    let script = "id -un; id -gn; pwd; echo $FOO; nproc; hostname; cat /proc/cmdline; grep MemTotal /proc/meminfo";
    let arguments = [
        "--user",
        "daemon:nogroup",
        "--workdir",
        "/usr/lib",
        "--env",
        "FOO=a b",
        "--cpus",
        "2",
        "--memory",
        "700M",
        "--name",
        "box",
        "--append",
        "extra.word=1",
        "--report=json",
        "debian",
        "--",
        "sh",
        "-c",
        script,
    ];
    let output = output(&debian, &arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..6], ["daemon", "nogroup", "/usr/lib", "a b", "2", "box"], "{out}");
    assert!(lines[6].contains("extra.word=1"), "{out}");
    let memory: u32 = lines[7].split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((500_000..720_000).contains(&memory), "{memory} KiB");
    let report: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    let number = |name: &str| report.pointer(name).and_then(serde_json::Value::as_u64).unwrap();
    assert!(number("/served/bytes") < number("/image_bytes") / 4, "a launch reads a part of the image: {report}");
    let initramfs = fs::read_dir(debian.home().join("cache")).unwrap().map(|entry| entry.unwrap());
    let initramfs = initramfs.filter(|entry| entry.file_name().to_string_lossy().starts_with("initramfs-"));
    let sizes: Vec<u64> = initramfs.map(|entry| entry.metadata().unwrap().len()).collect();
    assert!(sizes.len() == 1 && sizes[0] <= 3 << 20, "one initramfs of at most 3 MiB: {sizes:?}");
    assert!(number("/served/objects") > 5 && number("/served/failures") == 0, "{report}");
}

#[test]
fn what_is_special_about_the_data_plane_is_not_so_of_programs() {
    let debian = debian();
    let script = "for process in $(dirname $(grep -ls ^@lazyroot /proc/[0-9]*/cmdline)) /proc/self; do \
                  cat $process/oom_score_adj; grep -E '^(THP_enabled|VmLck):' $process/status; done";
    let output = output(&debian, &["debian", "--", "sh", "-c", script]);
    let out = text(&output.stdout);
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words[words.len() - 6..], ["0", "VmLck:", "0", "kB", "THP_enabled:", "1"], "{out}");
    assert_eq!(
        (words[0], words[words.len() - 7]),
        ("-1000", "0"),
        "not killed, and no page larger than need be: {out}"
    );
    assert_ne!(words[2], "0", "in memory to stay: {out}");
}

#[test]
fn output_of_any_length_arrives_and_input_too() {
    let debian = debian();
    // Far more than one write of the guest, which the transport would not survive uncut.
    let mut child = run(&debian, &["debian", "--", "sh", "-c", "head -c 5000000 /dev/zero; wc -c >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = thread::spawn(move || stdin.write_all(&vec![b'x'; 3_000_000]).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert_eq!(output.stdout.len(), 5_000_000);
    assert!(output.stdout.iter().all(|byte| *byte == 0));
    assert_eq!(text(&output.stderr).trim(), "3000000");
}

#[test]
fn exit_statuses_are_those_of_a_shell() {
    let debian = debian();
    for (command, status, said) in [
        (&["no-such-program"][..], 127, "no-such-program"),
        (&["/etc/passwd"], 126, "/etc/passwd"),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
    ] {
        let arguments = [&["debian", "--"], command].concat();
        let output = output(&debian, &arguments);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{err}");
        assert!(err.contains(said), "{err}");
    }
    let output = output(&debian, &["--user", "nobody-knows", "debian", "--", "true"]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("no user 'nobody-knows'"));
}

/// Starts a command that says `up`, and waits until it has.
fn start_until_up(
    lazyroot: &Lazyroot,
    options: &[&str],
    script: &str,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = run(lazyroot, &[options, &["debian", "--", "sh", "-c", script]].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n", "{}", text(&child.wait_with_output().unwrap().stderr));
    (child, output)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn ctrl_c_reaches_the_command() {
    let debian = debian();
    let script = "trap 'echo got it; exit 3' INT; echo up; while :; do sleep 0.1; done";
    let (mut child, mut output) = start_until_up(&debian, &[], script);
    signal(&child, Signal::INT);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got it\n", Some(3)));
}

#[test]
fn a_terminal_has_its_size_and_takes_ctrl_c() {
    let debian = debian();
    // script(1) gives lazyroot a terminal of a known size.
    let command = run(&debian, &["-t", "debian", "--", "sh", "-c", "tty; stty size; sleep 100"]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let inner = format!("stty rows 33 cols 99; {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &inner, "/dev/null"]);
    give_environment(&mut script, &command);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script(1) is installed");
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap().trim(), "/dev/pts/0");
    assert_eq!(lines.next().unwrap().unwrap().trim(), "33 99");
    stdin.write_all(b"\x03").unwrap();
    // 130: ended by SIGINT, which the guest's terminal made of the byte.
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn nothing_is_left_behind_however_lazyroot_ends() {
    let lazyroot = debian_of_its_own();
    assert!(output(&lazyroot, &["debian", "--", "true"]).status.success());
    assert_nothing_left(&lazyroot);
    // Ctrl-C while the VM boots, or, where a boot takes no time at all, just after its command has begun.
    let early = run(&lazyroot, &["debian", "--", "sleep", "100"]).stdin(Stdio::null()).spawn().unwrap();
    until("the hypervisor has started", || lazyroot.processes().len() > 1);
    signal(&early, Signal::INT);
    assert_eq!({ early }.wait().unwrap().code(), Some(130));
    assert_nothing_left(&lazyroot);
    // A crash leaves a folder, which the next launch sweeps away; its processes are gone at once.
    let (mut child, _output) = start_until_up(&lazyroot, &[], "echo up; sleep 100");
    child.kill().unwrap();
    child.wait().unwrap();
    lazyroot.assert_nothing_runs();
    assert!(output(&lazyroot, &["debian", "--", "true"]).status.success());
    assert_nothing_left(&lazyroot);
}

#[test]
fn a_name_in_use_is_refused() {
    let debian = debian();
    let (mut child, _output) = start_until_up(&debian, &["--name", "taken"], "echo up; sleep 100");
    let second = output(&debian, &["--name", "taken", "debian", "--", "true"]);
    assert_eq!(second.status.code(), Some(125));
    assert!(text(&second.stderr).contains("'taken' is running already"));
    signal(&child, Signal::TERM);
    child.wait().unwrap();
}

#[test]
fn an_image_that_is_nothing_like_debian_runs_a_command() {
    let (lazyroot, root) = (Lazyroot::default(), tiny_root());
    lazyroot.import_kernel();
    lazyroot.import(root.path(), "tiny");
    let output = output(&lazyroot, &["tiny", "--", "/bin/busybox", "sh", "-c", "echo $PATH; ls -d /usr || echo none"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).ends_with("none\n"), "{}", text(&output.stdout));
    let said = lazyroot.error(["run", "tiny"]);
    assert!(said.contains("no init") && said.contains("no entrypoint"), "{said}");
}

#[test]
fn a_bootc_image_boots_with_its_own_kernel() {
    // As bootc lays it out: the kernel beside its modules, in the image.
    let (lazyroot, root) = (Lazyroot::default(), tiny_root());
    let unpacked = tempfile::tempdir().unwrap();
    let status = Command::new("dpkg-deb").arg("-x").arg(lazyroot_tests::kernel_deb()).arg(unpacked.path()).status();
    assert!(status.unwrap().success());
    for dir in ["sysroot/ostree", "var/roothome"] {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    std::os::unix::fs::symlink("sysroot/ostree", root.path().join("ostree")).unwrap();
    std::os::unix::fs::symlink("var/roothome", root.path().join("root")).unwrap();
    let modules = root.path().join("usr/lib/modules");
    fs::create_dir_all(modules.parent().unwrap()).unwrap();
    let status = Command::new("cp").arg("-a").arg(unpacked.path().join("usr/lib/modules")).arg(&modules).status();
    assert!(status.unwrap().success());
    let release = fs::read_dir(&modules).unwrap().next().unwrap().unwrap().file_name();
    let kernel = unpacked.path().join("boot").join(format!("vmlinuz-{}", release.to_string_lossy()));
    fs::copy(kernel, modules.join(&release).join("vmlinuz")).unwrap();
    lazyroot.import(root.path(), "bootc");
    let script = "/bin/busybox uname -r; echo home >/root/file; /bin/busybox ls /var/roothome /sysroot";
    let output = output(&lazyroot, &["bootc", "--", "/bin/busybox", "sh", "-c", script]);
    let expected = format!("{}\n/sysroot:\nostree\n\n/var/roothome:\nfile\n", release.to_string_lossy());
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    let list = lazyroot.ok(["kernel", "ls", "--format", "json"]);
    assert!(list.contains("\"image:sha256:"), "{list}");
}

#[test]
fn systemd_boots_on_the_console() {
    let debian = debian();
    // The console is standard output when there is no command.
    let mut child = run(&debian, &["--append", "systemd.show_status=1", "debian"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut console = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    let reached = loop {
        match console.read(&mut buffer).unwrap() {
            0 => break false,
            len => seen.extend_from_slice(&buffer[..len]),
        }
        if text(&seen).contains("login:") {
            break true;
        }
    };
    assert!(reached, "{}\n{}", text(&seen), text(&child.wait_with_output().unwrap().stderr));
    assert!(text(&seen).contains("Debian GNU/Linux 13"), "{}", text(&seen));
    // Ctrl-A X, as the help says.
    child.stdin.take().unwrap().write_all(b"\x01x").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_tampered_manifest_or_index_is_refused_with_the_reason() {
    for which in ["manifest", "index"] {
        let (lazyroot, root) = (Lazyroot::default(), tiny_root());
        lazyroot.import_kernel();
        lazyroot.import(root.path(), "tiny");
        // A word on the command line later than ours wins: the guest expects another digest than the host sends.
        let other = "00".repeat(32);
        let word = format!("lazyroot.{which}=sha256:{other}");
        let output = output(&lazyroot, &["--append", &word, "tiny", "--", "/bin/busybox", "true"]);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{err}");
        assert!(err.contains("does not match its digest") || err.contains("is not served here"), "{err}");
        assert_nothing_left(&lazyroot);
    }
}

#[test]
fn a_damaged_object_is_an_io_error_in_the_guest_and_named_on_the_host() {
    let (lazyroot, root) = (Lazyroot::default(), tiny_root());
    fs::write(root.path().join("data"), vec![b'd'; 9000]).unwrap();
    lazyroot.import_kernel();
    lazyroot.import(root.path(), "tiny");
    let id = lazyroot_proto::verity::digest(lazyroot_proto::Algorithm::Sha256, &[b'd'; 9000]);
    let object = lazyroot.home().join("repository/objects").join(id.object_path());
    fs::write(&object, [b'D'; 9000]).unwrap();
    let output = output(&lazyroot, &["tiny", "--", "/bin/busybox", "cat", "/data"]);
    let err = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{err}");
    assert!(err.contains("Input/output error"), "{err}");
    assert_eq!(err.matches(&id.to_hex()).count(), 1, "named once: {err}");
}

#[test]
fn bad_input_gets_one_clear_error() {
    let lazyroot = Lazyroot::default();
    let root = tiny_root();
    lazyroot.import(root.path(), "tiny");
    let said = lazyroot.error(["run", "no-such-image", "--", "true"]);
    assert!(said.contains("no-such-image"), "{said}");
    let said = lazyroot.error(["run", "tiny", "--", "true"]);
    assert!(said.contains("lazyroot kernel import"), "{said}");
    lazyroot.import_kernel();
    let said = lazyroot.error(["run", "--kernel", "1.2.3", "tiny", "--", "true"]);
    assert!(said.contains("1.2.3") && said.contains("kernel ls"), "{said}");
    let said = lazyroot.error(["run", "--name", "no/good", "tiny", "--", "true"]);
    assert!(said.contains("no/good"), "{said}");
    let said = lazyroot.error(["kernel", "import", "deb:/etc/passwd"]);
    assert!(said.contains("/etc/passwd"), "{said}");
    // The hypervisor and its helper, missing.
    let without = |variable: &str, value: &str| {
        let mut command = run(&lazyroot, &["tiny", "--", "true"]);
        let output = command.env(variable, value).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        text(&output.stderr)
    };
    let said = without("PATH", "/nowhere");
    assert!(said.contains("apt-get install qemu-system"), "{said}");
    let said = without("LAZYROOT_GUEST_INIT", "/nowhere/guest-init");
    assert!(said.contains("/nowhere/guest-init"), "{said}");
    assert_nothing_left(&lazyroot);
}

#[test]
fn a_guest_that_panics_ends_with_the_consoles_last_words() {
    let debian = debian();
    // Without an init the kernel panics.
    let lazyroot = &debian;
    let output = output(lazyroot, &["--append", "rdinit=/none init=/none", "debian", "--", "true"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains("panic"), "{err}");
}

#[test]
fn a_guest_that_cannot_reach_the_host_ends_with_the_reason() {
    let debian = debian();
    // A word later on the command line wins: nobody listens at that port.
    let output = output(&debian, &["--append", "lazyroot.port=7", "debian", "--", "true"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains("cannot reach lazyroot on the host"), "{err}");
}

#[test]
fn kvm_is_used_only_where_it_works() {
    let lazyroot = debian_of_its_own();
    let first = lazyroot.run(["run", "--report=json", "debian", "--", "true"]);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let second = lazyroot.run(["run", "--report=json", "debian", "--", "true"]);
    let err = text(&second.stderr);
    assert!(second.status.success(), "{err}");
    // Whatever the first launch found out, the second knows and does not say again.
    assert_eq!(err.lines().count(), 1, "{err}");
}
