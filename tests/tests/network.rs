//! Promises about the ways into a guest and out of it: ports, the network and ssh.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use lazyroot_tests::images::debian;
use lazyroot_tests::temporary;
use lazyroot_tests::text;
use lazyroot_tests::vms::{Vm, tiny};
use lazyroot_tests::wait::until;

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
    let here = temporary();
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
    until("the server listens", || vm.ok(&["logs"], &[]).contains("up"));
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
    let config = temporary();
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
