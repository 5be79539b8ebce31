//! Promises about the cache of what upstreams sent.
//!
//! Mounts need root.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use lazyroot_proto::frame::{Hello, HostMessage, Request, Role};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use lazyroot_tests::data::{small, small_tree};
use lazyroot_tests::frames::next;
use lazyroot_tests::inputs::need_root;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::mounts::Unmount;
use lazyroot_tests::tree;
use lazyroot_tests::wait::{PATIENCE, until};

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
    until("the cache of 3 MiB is below 8", || disk_bytes(&cache) < 8 << 20);
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
    need_root();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs"]).arg(&cache).status();
    assert!(mounted.unwrap().success());
    let _unmount = Unmount(cache);
    let mount = near.mount("few", &["--upstream", peer.upstream(), "--cache-size", "1G"]);
    tree::assert_same(source.path(), mount.path());
}
