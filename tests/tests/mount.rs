//! Promises about `lazyroot mount`: the guest's data plane on this machine, with real images and servers.
//!
//! Mounting needs root; `make test` sees to it.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::inputs::need_root;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::{fuse_uring, rootfs, tree};

/// A tree with a large and a few small files, for tests that damage it.
fn small_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3_000_001u32).map(|i| (i % 253) as u8).collect();
    fs::write(dir.path().join("large"), large).unwrap();
    fs::write(dir.path().join("small"), vec![b's'; 5000]).unwrap();
    fs::write(dir.path().join("other"), vec![b'o'; 5000]).unwrap();
    dir
}

/// The object that holds `content`, in the default repository of `lazyroot`.
fn object_of(lazyroot: &Lazyroot, content: &[u8]) -> std::path::PathBuf {
    let id = lazyroot_proto::verity::digest(lazyroot_proto::Algorithm::Sha256, content);
    lazyroot.home().join("repository/objects").join(id.object_path())
}

#[test]
fn a_mounted_image_is_the_imported_tree_to_the_last_bit() {
    let lazyroot = Lazyroot::default();
    lazyroot.import(&rootfs(), "debian");
    let mount = lazyroot.mount("debian", &[]);
    let (files, bytes) = tree::assert_same(&rootfs(), mount.path());
    assert!(files > 5000 && bytes > 100 << 20, "a real tree: {files} files, {bytes} bytes");
    let denied = fs::write(mount.path().join("new"), "x").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

/// The process that serves the mount at `path`, in /proc.
fn server_of(path: &Path) -> PathBuf {
    let serves = |process: &PathBuf| {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| OsStr::from_bytes(word) == path)
    };
    fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).find(serves).unwrap()
}

/// How often the threads of a process that answer the kernel over io_uring have waited.
fn ring_waits(process: &Path) -> usize {
    let threads = fs::read_dir(process.join("task")).unwrap().map(|thread| thread.unwrap().path());
    let states = threads.map(|thread| fs::read_to_string(thread.join("status")).unwrap());
    let of_rings = states.filter(|state| state.starts_with("Name:\tfuse-"));
    let waits = |state: String| {
        let count = state.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse::<usize>().unwrap()
    };
    of_rings.map(waits).sum()
}

/// The root of the data layer that a process serves and nobody else sees: it keeps it open.
fn data_layer_of(process: &Path) -> PathBuf {
    let open = fs::read_dir(process.join("fd")).unwrap().map(|descriptor| descriptor.unwrap().path());
    open.into_iter().find(|descriptor| descriptor.join("image").exists()).unwrap()
}

/// As everywhere in this file, but over io_uring where the kernel has that (Linux 6.14); where it has not, that is noticed.
#[test]
fn over_io_uring_everything_is_as_it_is_through_the_device() {
    need_root();
    let switch = fuse_uring::Switch::turn(true);
    if let Err(error) = &switch {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    let (lazyroot, source) = (Lazyroot::default(), small_tree());
    lazyroot.import(&rootfs(), "debian");
    let mount = lazyroot.mount("debian", &[]);
    tree::assert_same(&rootfs(), mount.path());
    let server = server_of(mount.path());
    let waits = ring_waits(&server);
    assert_eq!(waits > 1000, switch.is_ok(), "{waits} waits for requests of thousands of files");
    let mut listed = 0;
    for object in fs::read_dir(data_layer_of(&server).join("5a")).unwrap().map(|object| object.unwrap()) {
        let stored = lazyroot.home().join("repository/objects/5a").join(object.file_name());
        assert_eq!(object.metadata().unwrap().len(), fs::metadata(stored).unwrap().len());
        listed += 1;
    }
    assert!(listed > 10, "a 256th of thousands of objects: {listed}");
    tree::assert_same(&rootfs(), mount.path());
    drop(mount);

    lazyroot.import(source.path(), "small");
    let small = object_of(&lazyroot, &[b's'; 5000]);
    fs::OpenOptions::new().write(true).open(&small).unwrap().write_all_at(b"!", 4321).unwrap();
    fs::remove_file(object_of(&lazyroot, &[b'o'; 5000])).unwrap();
    let mount = lazyroot.mount("small", &[]);
    for name in ["small", "other"] {
        let error = fs::read(mount.path().join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
    }
    let large = fs::read(source.path().join("large")).unwrap();
    assert!(fs::read(mount.path().join("large")).unwrap() == large);
    drop(mount);

    let off = fuse_uring::Switch::turn(false);
    let mount = lazyroot.mount("small", &[]);
    assert_eq!(ring_waits(&server_of(mount.path())), 0, "where it is switched off it is not used");
    drop((mount, off));
}

#[test]
fn changes_to_a_read_write_mount_stay_in_memory() {
    let (lazyroot, source) = (Lazyroot::default(), small_tree());
    lazyroot.import(source.path(), "small");
    let mount = lazyroot.mount("small", &["--read-write"]);
    fs::write(mount.path().join("new"), "mine").unwrap();
    fs::remove_file(mount.path().join("other")).unwrap();
    fs::OpenOptions::new().write(true).open(mount.path().join("large")).unwrap().write_all_at(b"!", 2_000_000).unwrap();
    fs::set_permissions(mount.path().join("small"), fs::Permissions::from_mode(0o600)).unwrap();
    let changed = fs::read(mount.path().join("large")).unwrap();
    let original = fs::read(source.path().join("large")).unwrap();
    assert_eq!((changed[2_000_000], &changed[..2_000_000]), (b'!', &original[..2_000_000]));
    drop(mount);
    let again = lazyroot.mount("small", &[]);
    tree::assert_same(source.path(), again.path());
}

#[test]
fn a_damaged_object_is_an_error_and_never_wrong_bytes() {
    let (lazyroot, source) = (Lazyroot::default(), small_tree());
    lazyroot.import(source.path(), "small");
    let large = fs::read(source.path().join("large")).unwrap();
    let damage = |content: &[u8], offset: u64| {
        let path = object_of(&lazyroot, content);
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"\xff\x00", offset).unwrap();
        path
    };
    damage(&[b's'; 5000], 4321);
    damage(&large, 1_500_000);
    let mount = lazyroot.mount("small", &[]);
    for name in ["small", "large"] {
        let error = fs::read(mount.path().join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
    }
    // What is whole stays readable.
    assert_eq!(fs::read(mount.path().join("other")).unwrap(), vec![b'o'; 5000]);
}

#[test]
fn a_damaged_block_in_a_long_read_is_an_error_and_never_zeros() {
    let (lazyroot, source) = (Lazyroot::default(), tempfile::tempdir().unwrap());
    let content: Vec<u8> = (0..16u32 << 20).map(|byte| (byte / 4096 % 251) as u8 + 1).collect();
    fs::write(source.path().join("large"), &content).unwrap();
    lazyroot.import(source.path(), "large");
    // Read once, so that the host has what proves each block; without that no block of a damaged object is readable.
    assert!(fs::read(lazyroot.mount("large", &[]).path().join("large")).unwrap() == content);
    let damaged = 12 << 20;
    fs::OpenOptions::new()
        .write(true)
        .open(object_of(&lazyroot, &content))
        .unwrap()
        .write_all_at(b"!", damaged)
        .unwrap();
    let mount = lazyroot.mount("large", &[]);
    let shown = rustix::fs::statvfs(mount.path()).unwrap();
    assert!(
        shown.f_blocks * shown.f_frsize >= content.len() as u64,
        "the file has its place in the image that EROFS reads"
    );
    // So far ahead that a read of EROFS becomes many of FUSE, of which one fails.
    for bdi in fs::read_dir("/sys/class/bdi").unwrap().map(|entry| entry.unwrap().path()) {
        if bdi.file_name().unwrap().to_str().unwrap().starts_with("erofs-") {
            // It may be another test's, gone by now.
            let _ = fs::write(bdi.join("read_ahead_kb"), "8192");
        }
    }
    let file = fs::File::open(mount.path().join("large")).unwrap();
    let mut failed = Vec::new();
    for offset in (0..content.len() as u64).step_by(4096) {
        let mut block = [0; 4096];
        match file.read_exact_at(&mut block, offset) {
            Ok(()) => assert!(content[offset as usize..].starts_with(&block), "wrong bytes at {offset}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5));
                failed.push(offset);
            }
        }
    }
    let (first, last) = (failed[0], *failed.last().unwrap());
    assert!(
        failed.contains(&damaged) && last - first < 4 << 20,
        "{first} to {last}: no more than what is read together"
    );
}

#[test]
fn a_few_nodes_prove_reads_of_a_very_large_file() {
    // Its leaves are 8 MiB, and those of their hashes more than what is asked for at a time: three levels.
    const SIZE: u64 = (1 << 30) + 12_345;
    let source = tempfile::tempdir().unwrap();
    let file = fs::File::create(source.path().join("model")).unwrap();
    file.set_len(SIZE).unwrap();
    let places = [0, (8 << 20) - 100, 500 << 20, (1 << 30) - 50, SIZE - 200];
    for place in places {
        file.write_all_at(&place.to_le_bytes().repeat(25), place).unwrap();
    }
    let lazyroot = Lazyroot::default();
    lazyroot.import(source.path(), "model");
    let mount = lazyroot.mount("model", &[]);
    let mounted = fs::File::open(mount.path().join("model")).unwrap();
    for place in places {
        let mut read = [0; 200];
        mounted.read_exact_at(&mut read, place).unwrap();
        assert_eq!(read[..], place.to_le_bytes().repeat(25), "at {place}");
    }
    let stats: serde_json::Value =
        serde_json::from_str(&lazyroot.ok(["stats", "--format", "json", mount.path().to_str().unwrap()])).unwrap();
    assert!(stats["sent_bytes"].as_u64() < Some(3 << 20), "{stats}");
}

#[test]
fn a_truncated_or_missing_object_is_an_error_and_not_zeros() {
    let (lazyroot, source) = (Lazyroot::default(), small_tree());
    lazyroot.import(source.path(), "small");
    let truncated = object_of(&lazyroot, &[b's'; 5000]);
    fs::OpenOptions::new().write(true).open(truncated).unwrap().set_len(4096).unwrap();
    fs::remove_file(object_of(&lazyroot, &[b'o'; 5000])).unwrap();
    let mount = lazyroot.mount("small", &[]);
    for name in ["small", "other"] {
        let error = fs::read(mount.path().join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{name}: {error}");
    }
}

#[test]
fn a_manifest_or_index_that_was_tampered_with_is_refused_at_mount() {
    need_root();
    // The mount trusts the store's names for digests, so tamper where a server reads and mount from another home.
    for which in ["manifest", "index"] {
        let (honest, source) = (Lazyroot::default(), small_tree());
        honest.import(source.path(), "small");
        let evil = Lazyroot::default();
        evil.import(source.path(), "small");
        let server = evil.serve();
        tamper(&evil, which);
        let dir = tempfile::tempdir().unwrap();
        let said = honest.error(["mount", "small", dir.path().to_str().unwrap(), "--connect", server.endpoint()]);
        assert!(said.contains(which) && said.contains("does not match its digest"), "{said}");
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is mounted");
    }
}

/// Changes the image's metadata in a store, as an attacker who owns the server's disk would.
fn tamper(lazyroot: &Lazyroot, which: &str) {
    let repository = lazyroot.home().join("repository");
    let file = match which {
        "manifest" => {
            let mut images = fs::read_dir(repository.join("images")).unwrap().map(|entry| entry.unwrap().path());
            fs::canonicalize(images.find(|path| path.is_symlink()).unwrap()).unwrap()
        }
        _ => fs::read_dir(repository.join("lazyroot/index")).unwrap().next().unwrap().unwrap().path(),
    };
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    let digest = verity::digest(Algorithm::Sha256, &bytes);
    let fresh = file.with_extension("tampered");
    fs::write(&fresh, bytes).unwrap();
    fs::rename(fresh, file).unwrap();
    if which == "index" {
        // The server notices an index that does not match what it remembers, so that is made to match.
        let facts = format!(r#"{{"id":"{digest}","objects":1,"object_bytes":1}}"#);
        let check = verity::digest(Algorithm::Sha256, format!(r#"["{name}",{facts}]"#).as_bytes());
        let record = format!(r#"{{"facts":{facts},"check":"{check}"}}"#);
        fs::write(repository.join("lazyroot/facts").join(name), record).unwrap();
    }
}

#[test]
fn a_mount_outlives_its_server_and_carries_on_with_the_next() {
    let (lazyroot, source) = (Lazyroot::default(), small_tree());
    lazyroot.import(source.path(), "small");
    let server = lazyroot.serve();
    let mount = lazyroot.mount("small", &["--connect", server.endpoint()]);
    assert_eq!(fs::read(mount.path().join("small")).unwrap().len(), 5000);
    server.crash();
    let reader = {
        let path = mount.path().join("large");
        thread::spawn(move || fs::read(path))
    };
    thread::sleep(Duration::from_millis(500));
    assert!(!reader.is_finished(), "the read waits for a server");
    let _server = lazyroot.serve();
    let read = reader.join().unwrap().unwrap();
    assert!(read == fs::read(source.path().join("large")).unwrap());
}

#[test]
fn a_hundred_mounts_share_one_small_server() {
    const MOUNTS: usize = 100;
    let lazyroot = Lazyroot::default();
    let source = rootfs();
    lazyroot.import(&source, "debian");
    let server = lazyroot.serve();
    let started = Instant::now();
    let mounts: Vec<_> = (0..MOUNTS).map(|_| lazyroot.mount("debian", &["--connect", server.endpoint()])).collect();
    println!("{MOUNTS} mounts took {:?}", started.elapsed());
    let before = read_bytes(server.pid());
    let samples = ["usr/bin/perl", "etc/passwd", "usr/lib/os-release"];
    thread::scope(|scope| {
        for chunk in mounts.chunks(25) {
            let source = &source;
            scope.spawn(move || {
                for mount in chunk {
                    for sample in samples {
                        let expected = fs::read(source.join(sample)).unwrap();
                        assert!(fs::read(mount.path().join(sample)).unwrap() == expected, "{sample}");
                    }
                }
            });
        }
    });
    let rss = status_kib(server.pid(), "VmHWM:");
    let read = read_bytes(server.pid()) - before;
    println!("server: {rss} KiB at most, {read} bytes read from the disk");
    assert!(rss < 100 << 10, "the server took {rss} KiB");
    let once: u64 = samples.iter().map(|sample| fs::metadata(source.join(sample)).unwrap().len()).sum();
    // Whole pages and the file system's own readahead included; far from a hundred times.
    assert!(read <= 4 * once + (1 << 20), "{read} bytes were read from the disk for {once} bytes of content");
}

/// A figure of /proc/PID/status, in KiB.
fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Bytes that a process caused to be read from disks.
fn read_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap().parse().unwrap()
}

#[test]
fn bad_input_gets_one_clear_error() {
    need_root();
    let (lazyroot, source) = (Lazyroot::default(), small_tree());
    lazyroot.import(source.path(), "small");
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let said = lazyroot.error(["mount", "no-such-image", at]);
    assert!(said.contains("no-such-image"), "{said}");
    let said = lazyroot.error(["mount", "small", "/no/such/folder"]);
    assert!(said.contains("/no/such/folder"), "{said}");
    let said = lazyroot.error(["umount", at]);
    assert!(said.contains("no image is mounted"), "{said}");
    let server = lazyroot.serve();
    let said = lazyroot.error(["serve", "--listen", server.endpoint()]);
    assert!(said.contains("another process does already"), "{said}");
    assert!(Path::new(server.socket()).exists(), "the running server keeps its socket");
}
