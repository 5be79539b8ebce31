//! Promises about images that are elsewhere: behind another lazyroot, over every kind of stream, and in the cache.
//!
//! Mounts need root; `make test` sees to it.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::frame::{Hello, HostMessage, Request, Role};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use lazyroot_tests::frames::next;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::{data, given, rootfs, tree};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tree of `count` small files, all different, and a large one.
fn small_tree(count: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..count {
        fs::write(dir.path().join(format!("f{number}")), small(number)).unwrap();
    }
    data::write_unique(&dir.path().join("large"), 5_000_001, 7).unwrap();
    // composefs takes no container image without.
    fs::create_dir(dir.path().join("usr")).unwrap();
    dir
}

/// The content of a small file of [`small_tree`].
fn small(number: u32) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(5000 + number as usize).collect()
}

fn command(lazyroot: &Lazyroot) -> String {
    format!("LAZYROOT_HOME={} exec {} serve --stdio", lazyroot.home().display(), given("LAZYROOT_TEST_BIN").display())
}

/// Programs of `lazyroot` that serve on standard output.
fn far_ends(lazyroot: &Lazyroot) -> Vec<u32> {
    let serves = |pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        // Not the shell, nor sshd's, that has the same words as one.
        words.next().is_some_and(|program| program.ends_with(b"lazyroot")) && words.any(|word| word == b"--stdio")
    };
    lazyroot.processes().into_iter().filter(serves).collect()
}

/// Kills the far end over and over while `work` is done; how often that was.
fn kill_meanwhile(far: &Lazyroot, work: impl FnOnce()) -> u32 {
    let (done, finished) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let killer = scope.spawn(move || {
            let mut kills = 0;
            // Two a second: work must go on in between.
            while finished.recv_timeout(Duration::from_millis(400)).is_err() {
                for pid in far_ends(far) {
                    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
                    kills += 1;
                }
            }
            kills
        });
        work();
        done.send(()).unwrap();
        killer.join().unwrap()
    })
}

#[test]
fn a_mount_through_another_lazyroot_is_the_imported_tree_and_stays_when_that_is_gone() {
    let (far, near) = (Lazyroot::default(), Lazyroot::default());
    far.import(&rootfs(), "debian");
    let peer = far.serve_peers();
    {
        let mount = near.mount("debian", &["--upstream", peer.upstream()]);
        let (files, bytes) = tree::assert_same(&rootfs(), mount.path());
        assert!(files > 5000 && bytes > 100 << 20, "a real tree: {files} files, {bytes} bytes");
    }
    drop(peer);
    let mount = near.mount("debian", &["--upstream", &format!("unix:{}/nobody", far.home().display())]);
    tree::assert_same(&rootfs(), mount.path());
}

#[test]
fn a_command_whose_far_end_is_killed_again_and_again_is_a_pause_and_not_an_error() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(3000));
    far.import(source.path(), "many");
    let upstream = format!("command:{}", command(&far));
    let mount = near.mount("many", &["--upstream", &upstream, "--cache-size", "0"]);
    let kills = kill_meanwhile(&far, || {
        for _ in 0..3 {
            tree::assert_same(source.path(), mount.path());
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
    });
    assert!(kills > 0, "the far end was never killed");
    drop(mount);
    let deadline = Instant::now() + PATIENCE;
    while !far_ends(&far).is_empty() {
        assert!(Instant::now() < deadline, "the far end outlives the mount");
        thread::sleep(Duration::from_millis(20));
    }
}

/// An OpenSSH server of the test's own, on loopback, that lets one key in.
struct Sshd {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Sshd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).status();
            assert!(made.expect("apt-get install openssh-client").success());
        }
        fs::copy(path("user.pub"), path("authorized")).unwrap();
        // Where sshd's privileged half lives; it makes sure of that itself only when init starts it.
        fs::create_dir_all("/run/sshd").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin yes\n",
            path("host"),
            path("authorized")
        );
        fs::write(path("config"), config).unwrap();
        let known = fs::read_to_string(path("host.pub")).unwrap();
        fs::write(path("known"), format!("[127.0.0.1]:{port} {known}")).unwrap();
        let child =
            Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f", &path("config")]).stderr(Stdio::null()).spawn();
        let child = child.expect("apt-get install openssh-server");
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "sshd does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Self { child, dir, port }
    }

    /// The ssh that may come in.
    fn client(&self, key: &str) -> String {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        format!(
            "ssh -F /dev/null -oIdentitiesOnly=yes -i {} -oUserKnownHostsFile={} -oStrictHostKeyChecking=yes",
            path(key),
            path("known")
        )
    }

    fn upstream(&self) -> String {
        format!("ssh://root@127.0.0.1:{}", self.port)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `config.toml` whose one upstream is `url`, with `far`'s program there.
fn configure(near: &Lazyroot, url: &str, far: &Lazyroot) {
    let program = format!("env LAZYROOT_HOME={} {}", far.home().display(), given("LAZYROOT_TEST_BIN").display());
    near.configure(&format!("[[upstream]]\nurl = \"{url}\"\nprogram = \"{program}\"\n"));
}

#[test]
fn ssh_brings_an_image_from_another_machine_and_survives_its_connections_end() {
    let (far, near, source, sshd) = (Lazyroot::default(), Lazyroot::default(), small_tree(2000), Sshd::start());
    far.import(source.path(), "many");
    configure(&near, &sshd.upstream(), &far);
    let ssh = sshd.client("user");
    let mount = near.mount_with("many", &["--cache-size", "0"], &[("LAZYROOT_SSH", &ssh)]);
    let kills = kill_meanwhile(&far, || {
        for _ in 0..3 {
            tree::assert_same(source.path(), mount.path());
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
    });
    assert!(kills > 0, "the far end was never killed");
}

#[test]
fn an_ssh_that_fails_says_why_and_what_to_do() {
    let (far, near, sshd) = (Lazyroot::default(), Lazyroot::default(), Sshd::start());
    let dir = tempfile::tempdir().unwrap();
    let said = |ssh: &str| {
        let mut command = near.command(["mount", "x", dir.path().to_str().unwrap()]);
        let output = command.env("LAZYROOT_SSH", ssh).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        String::from_utf8(output.stderr).unwrap()
    };
    configure(&near, &sshd.upstream(), &far);
    // The host's key is not the user's.
    let error = said(&sshd.client("host"));
    assert!(error.contains("ssh-copy-id root@127.0.0.1") && error.contains(&sshd.upstream()), "{error}");
    fs::write(sshd.dir.path().join("known"), "").unwrap();
    let error = said(&sshd.client("user"));
    assert!(error.contains("its host key is not known here"), "{error}");
    let key = fs::read_to_string(sshd.dir.path().join("host.pub")).unwrap();
    fs::write(sshd.dir.path().join("known"), format!("[127.0.0.1]:{} {key}", sshd.port)).unwrap();
    near.configure(&format!("[[upstream]]\nurl = '{}'\nprogram = 'no-such-lazyroot'\n", sshd.upstream()));
    let error = said(&sshd.client("user"));
    assert!(error.contains("no lazyroot in its PATH"), "{error}");
    configure(&near, &sshd.upstream(), &far);
    let error = said(&sshd.client("user"));
    assert!(error.contains("no image 'x'") && error.contains("not at ssh://"), "{error}");
}

#[test]
fn an_image_of_podmans_is_imported_and_served_by_the_far_end() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    let podman = tempfile::tempdir().unwrap();
    let (root, run) = (podman.path().join("root"), podman.path().join("run"));
    let layer = podman.path().join("layer.tar");
    let packed = Command::new("tar").arg("-C").arg(source.path()).arg("-cf").arg(&layer).arg(".").status().unwrap();
    assert!(packed.success());
    let place = format!("containers-storage:[overlay@{}+{}]localhost/os:v1", root.display(), run.display());
    let copied = Command::new("skopeo").args(["copy", "-q", &format!("tarball:{}", layer.display()), &place]).status();
    assert!(copied.expect("apt-get install skopeo").success());
    // skopeo leaves this folder mounted onto itself, as podman does.
    let _unmount = Unmount(root.join("overlay"));
    let upstream = format!("command:{}", command(&far));
    let mount = near.mount(&place, &["--upstream", &upstream]);
    assert_eq!(fs::read(mount.path().join("f7")).unwrap(), small(7));
    let there = far.ok(["image", "ls"]);
    assert!(there.contains("localhost/os:v1"), "{there}");
    assert!(!near.ok(["image", "ls"]).contains("localhost/os"), "it stays there");
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn object_file(lazyroot: &Lazyroot, content: &[u8]) -> PathBuf {
    let id = verity::digest(Algorithm::Sha256, content);
    lazyroot.home().join("repository/objects").join(id.object_path())
}

#[test]
fn what_one_upstream_has_damaged_comes_from_the_next() {
    let (bad, good, near, source) = (Lazyroot::default(), Lazyroot::default(), Lazyroot::default(), small_tree(50));
    for far in [&bad, &good] {
        far.import(source.path(), "few");
    }
    let large = fs::read(source.path().join("large")).unwrap();
    for (content, offset) in [(&small(3), 4000), (&large, 3_000_000)] {
        let file = fs::OpenOptions::new().write(true).open(object_file(&bad, content)).unwrap();
        file.write_all_at(b"\xff\x00\xff", offset).unwrap();
    }
    fs::remove_file(object_file(&bad, &small(4))).unwrap();
    let (bad_peer, good_peer) = (bad.serve_peers(), good.serve_peers());
    let log = near.home().join("log");
    let mut command = near.command(["mount", "--foreground", "few"]);
    let dir = tempfile::tempdir().unwrap();
    command.arg(dir.path()).args(["--upstream", bad_peer.upstream(), "--upstream", good_peer.upstream()]);
    let mut child = command.stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mounted\n", "{}", fs::read_to_string(&log).unwrap());
    let same = std::panic::catch_unwind(|| tree::assert_same(source.path(), dir.path()));
    near.ok(["umount".as_ref(), dir.path().as_os_str()]);
    child.wait().unwrap();
    let log = fs::read_to_string(log).unwrap();
    same.unwrap_or_else(|_| panic!("{log}"));
    let id = verity::digest(Algorithm::Sha256, &small(3));
    let named = log.lines().any(|line| line.contains(&id.to_string()) && line.contains(bad_peer.upstream()));
    assert!(named, "{log}");
}

#[test]
fn a_repair_takes_from_an_upstream_what_its_own_source_no_longer_has() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    far.import(source.path(), "image");
    near.import(source.path(), "image");
    let large = fs::read(source.path().join("large")).unwrap();
    fs::remove_dir_all(source.path()).unwrap();
    let peer = far.serve_peers();
    let objects = near.home().join("repository/objects");
    for file in [object_file(&near, &small(3)), object_file(&near, &large)] {
        File::options().write(true).open(file).unwrap().write_all_at(b"!", 4000).unwrap();
    }
    fs::remove_file(object_file(&near, &small(4))).unwrap();
    let id: ObjectId =
        near.ok(["image", "inspect", "image"]).parse::<Value>().unwrap()["id"].as_str().unwrap().parse().unwrap();
    fs::write(objects.join(id.object_path()), "no manifest").unwrap();
    let error = near.error(["store", "verify", "--repair"]);
    assert!(error.contains("4 objects are damaged"), "{error}");
    let said = near.ok(["store", "verify", "--repair", "--upstream", peer.upstream()]);
    assert_eq!(said.matches("; repaired").count(), 4, "{said}");
    near.ok(["store", "verify"]);
    assert_eq!(near.run(["store", "cat", "image:/large"]).stdout, large);
    assert_eq!(near.run(["store", "cat", "image:/f4"]).stdout, small(4));
}

#[test]
fn an_image_elsewhere_can_be_looked_into_without_an_import() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    far.import(source.path(), "image");
    let peer = far.serve_peers();
    let dest = near.home().join("copy");
    let copy = dest.to_str().unwrap();
    let looks: &[&[&str]] = &[
        &["store", "ls", "-R", "image"],
        &["store", "tree", "image"],
        &["store", "find", "image", "--name", "f1*"],
        &["store", "stat", "image:/f3"],
        &["store", "cat", "image:/f3", "image:/f4"],
        &["store", "du", "image"],
    ];
    for look in looks {
        let there = near.run(look.iter().chain(&["--upstream", peer.upstream()]));
        assert!(there.status.success(), "{look:?}: {}", String::from_utf8_lossy(&there.stderr));
        assert_eq!(there.stdout, far.run(*look).stdout, "{look:?}");
    }
    let inspect = |lazyroot: &Lazyroot, options: &[&str]| -> Value {
        lazyroot.ok(["image", "inspect", "image"].iter().chain(options)).parse().unwrap()
    };
    let (there, here) = (inspect(&near, &["--upstream", peer.upstream()]), inspect(&far, &[]));
    for field in ["id", "objects", "object_bytes", "files", "manifest_bytes", "index_id"] {
        assert_eq!(there[field], here[field], "{field}");
    }
    near.ok(["store", "cp", "image:/", copy, "--upstream", peer.upstream()]);
    tree::assert_same(source.path(), &dest);
    assert_eq!(near.ok(["image", "ls", "--format", "json"]).trim(), "[]", "nothing was imported");
    // What was read is in the cache: a second look asks for the name alone.
    let stats = || near.ok(["store", "stats", "--format", "json"]).parse::<Value>().unwrap()["cache"].clone();
    let before = stats();
    assert!(before["misses"].as_u64().unwrap() >= 21 && before["bytes"].is_u64(), "{before}");
    near.ok(["store", "cat", "image:/f3", "image:/f4", "--upstream", peer.upstream()]);
    let after = stats();
    assert_eq!(after["misses"], before["misses"], "{after}");
    assert!(after["hits"].as_u64() >= before["hits"].as_u64().map(|hits| hits + 2), "{after}");
    assert!(after["hit_ratio"].as_f64() > Some(0.0), "{after}");
    let error = near.error(["store", "ls", "nothing", "--upstream", peer.upstream()]);
    assert!(error.contains("no image 'nothing'") && error.contains(peer.upstream()), "{error}");
}

#[test]
fn the_doctor_asks_every_upstream_and_says_how_to_mend_it() {
    let (far, near, folder) = (Lazyroot::default(), Lazyroot::default(), tempfile::tempdir().unwrap());
    let peer = far.serve_peers();
    let (gone, empty) = (format!("unix:{}/gone", far.home().display()), format!("file://{}", folder.path().display()));
    let stranger = "command:echo Welcome to this machine; sleep 1";
    let urls = [peer.upstream(), &gone, &empty, stranger];
    near.configure(&urls.map(|url| format!("[[upstream]]\nurl = \"{url}\"\n")).concat());
    let findings = || -> Vec<Value> {
        let output = near.run(["doctor", "--format", "json"]);
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        all.into_iter().filter(|finding| finding["name"] == "upstream" || finding["name"] == "cache").collect()
    };
    let found = findings();
    let text = |number: usize, field: &str| found[number][field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        found.iter().map(|one| one["health"].as_str().unwrap()).collect::<Vec<_>>(),
        ["good", "good", "warning", "warning", "warning"]
    );
    assert!(text(1, "found").contains(peer.upstream()));
    assert!(text(2, "mend").contains(&format!("lazyroot serve --peer {gone}")), "{}", text(2, "mend"));
    assert!(text(3, "found").contains("nothing of lazyroot's") && text(3, "mend").contains("store push"), "{found:?}");
    assert!(text(4, "found").contains("does not answer as lazyroot does"), "{}", text(4, "found"));
    let source = small_tree(1);
    far.import(source.path(), "a");
    far.ok(["store", "push", &empty, "a"]);
    assert_eq!(findings()[3]["health"], "good");
}

#[test]
fn what_cannot_be_had_undamaged_is_an_error_and_never_wrong_bytes() {
    let (bad, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(5));
    bad.import(source.path(), "few");
    let file = fs::OpenOptions::new().write(true).open(object_file(&bad, &small(3))).unwrap();
    file.write_all_at(b"\xff\x00\xff", 1000).unwrap();
    let peer = bad.serve_peers();
    let mount = near.mount("few", &["--upstream", peer.upstream()]);
    let error = fs::read(mount.path().join("f3")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(fs::read(mount.path().join("f4")).unwrap(), small(4));
}

#[test]
fn guests_and_other_lazyroots_are_kept_apart() {
    let (far, source) = (Lazyroot::default(), small_tree(3));
    far.import(source.path(), "few");
    let (peer, server) = (far.serve_peers(), far.serve());
    let refused = |socket: &Path, role: Role| {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&Request::Hello(Hello { role }).encode(0)).unwrap();
        let (header, payload) = next(&mut stream).unwrap();
        matches!(HostMessage::decode(header.kind, &payload), Ok(HostMessage::Error { .. }))
    };
    // A guest that could say that it is a lazyroot could read every image.
    assert!(refused(server.socket(), Role::Peer));
    let image = verity::digest(Algorithm::Sha256, b"any");
    assert!(refused(peer.socket(), Role::Data(image)));
    assert!(!refused(peer.socket(), Role::Peer));
}

#[test]
fn a_lazyroot_behind_a_lazyroot_behind_a_lazyroot() {
    let (first, second, near, source) = (Lazyroot::default(), Lazyroot::default(), Lazyroot::default(), small_tree(50));
    first.import(source.path(), "few");
    let upstream = format!("command:{} --upstream 'command:{}'", command(&second), command(&first));
    let mount = near.mount("few", &["--upstream", &upstream]);
    tree::assert_same(source.path(), mount.path());
}

#[test]
fn an_error_in_the_configuration_says_the_line() {
    let lazyroot = Lazyroot::default();
    lazyroot.configure("[cache]\nsize = \"5%\"\n\n[[upstream]]\nurl = \"build.example\"\n");
    let error = lazyroot.error(["mount", "x", "/"]);
    assert!(error.contains("config.toml:5: ") && error.contains("'build.example' is no upstream"), "{error}");
    // A flag stands for the file's upstreams, but a file that makes no sense is always told.
    lazyroot.configure("[[upstream]]\nurl = \"unix:/nowhere\"\n");
    let error = lazyroot.error(["mount", "x", "/"]);
    assert!(error.contains("upstream unix:/nowhere"), "{error}");
    let error = lazyroot.error(["mount", "x", "/", "--upstream", "none"]);
    assert!(error.contains("no image 'x'"), "{error}");
}

/// A session about an image on a server of guests.
struct Guest {
    stream: UnixStream,
    tag: u64,
}

impl Guest {
    fn connect(socket: &Path, image: ObjectId) -> std::io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&Request::Hello(Hello { role: Role::Data(image) }).encode(0))?;
        next(&mut stream)?;
        Ok(Self { stream, tag: 0 })
    }

    /// Reads and checks; an error if the server is gone.
    fn assert_reads(&mut self, content: &[u8], offset: usize, len: usize) -> std::io::Result<()> {
        self.tag += 1;
        let id = verity::digest(Algorithm::Sha256, content);
        let read = Request::Read { id, offset: offset as u64, len: len as u32 };
        self.stream.write_all(&read.encode(self.tag))?;
        let (header, payload) = next(&mut self.stream)?;
        match HostMessage::decode(header.kind, &payload).unwrap() {
            HostMessage::Data(data) => assert!(data == &content[offset..offset + len], "wrong bytes of {id}"),
            other => panic!("{other:?}"),
        }
        Ok(())
    }
}

#[test]
fn a_cache_that_is_killed_at_any_moment_serves_nothing_wrong_and_loses_nothing() {
    const FILES: u32 = 400;
    const ROUNDS: u64 = 200;
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(FILES));
    far.import(source.path(), "many");
    let list: serde_json::Value = serde_json::from_str(&far.ok(["image", "ls", "--format", "json"])).unwrap();
    let image: ObjectId = list[0]["id"].as_str().unwrap().parse().unwrap();
    let large = fs::read(source.path().join("large")).unwrap();
    let peer = far.serve_peers();
    let options = ["--upstream", peer.upstream(), "--cache-size", "3M"];
    for round in 0..ROUNDS {
        let server = near.serve_with(&options);
        let (socket, large) = (server.socket().to_owned(), &large);
        thread::scope(|scope| {
            for client in 0..2 {
                let socket = &socket;
                scope.spawn(move || {
                    let Ok(mut guest) = Guest::connect(socket, image) else { return };
                    // Another order each time, so that every moment of every kind of entry is met.
                    let mut at = round * 7919 + client * 104_729;
                    loop {
                        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let draw = (at >> 33) as usize;
                        let read = match draw % 4 {
                            0 => {
                                let offset = draw % (large.len() - 300_000);
                                guest.assert_reads(large, offset, 1 + draw % 300_000)
                            }
                            _ => {
                                let content = small(draw as u32 % FILES);
                                guest.assert_reads(&content, 0, content.len())
                            }
                        };
                        if read.is_err() {
                            return;
                        }
                    }
                });
            }
            thread::sleep(Duration::from_millis(5 + round * 37 % 120));
            server.crash();
        });
    }
    // Whatever is in the cache now, a new server reads all of the image right.
    let server = near.serve_with(&options);
    let mut guest = Guest::connect(server.socket(), image).unwrap();
    for number in 0..FILES {
        let content = small(number);
        guest.assert_reads(&content, 0, content.len()).unwrap();
    }
    for offset in (0..large.len()).step_by(1 << 20) {
        guest.assert_reads(&large, offset, (large.len() - offset).min(1 << 20)).unwrap();
    }
    // And the bound held, but for what a killed process had not counted yet.
    let cache = near.home().join("cache/objects");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let bytes = disk_bytes(&cache);
        if bytes < 8 << 20 {
            break;
        }
        assert!(Instant::now() < deadline, "{bytes} bytes in a cache of 3 MiB");
        thread::sleep(Duration::from_millis(100));
    }
}

fn disk_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes += disk_bytes(&entry.path()),
            Ok(meta) => bytes += meta.len(),
            Err(_) => (),
        }
    }
    bytes
}

#[test]
fn damage_in_the_cache_is_noticed_and_mended() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    far.import(source.path(), "few");
    let peer = far.serve_peers();
    let options = ["--upstream", peer.upstream()];
    tree::assert_same(source.path(), near.mount("few", &options).path());
    // As after a loss of power: right lengths, wrong bytes, and files cut short.
    let mut entries = 0;
    for folder in fs::read_dir(near.home().join("cache/objects")).unwrap().flatten() {
        if folder.file_name().len() != 2 {
            continue;
        }
        for entry in fs::read_dir(folder.path()).unwrap().flatten() {
            entries += 1;
            let len = entry.metadata().unwrap().len();
            let file = fs::OpenOptions::new().write(true).open(entry.path()).unwrap();
            match entries % 3 {
                0 => file.set_len(len / 2).unwrap(),
                1 => file.write_all_at(&vec![0; len as usize], 0).unwrap(),
                _ => (),
            }
        }
    }
    assert!(entries > 50, "small files, pieces and leaves: {entries}");
    tree::assert_same(source.path(), near.mount("few", &options).path());
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    far.import(source.path(), "few");
    let peer = far.serve_peers();
    // A full disk, as the cache sees it.
    let cache = near.home().join("cache/objects");
    fs::create_dir_all(&cache).unwrap();
    for dir in [near.home().to_owned(), near.home().join("cache"), cache.clone()] {
        fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
    }
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"]).arg(&cache).status();
    assert!(mounted.unwrap().success());
    let _unmount = Unmount(cache);
    let mount = near.mount("few", &["--upstream", peer.upstream(), "--cache-size", "1G"]);
    tree::assert_same(source.path(), mount.path());
}

#[test]
fn a_vm_boots_from_an_image_that_is_behind_another_lazyroot() {
    let (far, near) = (Lazyroot::default(), Lazyroot::default());
    far.import(&rootfs(), "debian");
    near.import_kernel();
    let upstream = format!("command:{}", command(&far));
    let arguments =
        ["run", "--hypervisor", "qemu:tcg", "--upstream", &upstream, "debian", "--", "cat", "/etc/os-release"];
    let said = near.ok(arguments);
    assert!(said.contains("ID=debian"), "{said}");
}
