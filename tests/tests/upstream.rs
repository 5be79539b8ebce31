//! Promises about images that are elsewhere: behind another lazyroot, over every kind of stream.
//!
//! Mounts need root.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use lazyroot_proto::frame::{Hello, HostMessage, Request, Role};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use lazyroot_tests::data::{small, small_tree};
use lazyroot_tests::far_end::{command, far_ends, kill_meanwhile};
use lazyroot_tests::frames::next;
use lazyroot_tests::inputs::need_root;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::mounts::Unmount;
use lazyroot_tests::stores::object_file;
use lazyroot_tests::wait::{PATIENCE, until};
use lazyroot_tests::{rootfs, tree};
use serde_json::Value;

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
    until("the far end ends with the mount", || far_ends(&far).is_empty());
}

#[test]
fn an_image_of_podmans_is_imported_and_served_by_the_far_end() {
    let (far, near, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    need_root();
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

#[test]
fn what_one_upstream_has_damaged_comes_from_the_next() {
    need_root();
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
    need_root();
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
