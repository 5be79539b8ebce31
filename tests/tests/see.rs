//! Promises about what can be seen: stats, top, traces, metrics and profiles, of real servers, mounts and VMs.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use lazyroot_proto::frame::{HEADER, Header, Hello, HostMessage, Metadata, Request, Role};
use lazyroot_proto::reads::{Counters, Extent, Origin, Read, decode_hints};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use lazyroot_tests::images::debian;
use lazyroot_tests::lazyroot::{Lazyroot, Server};
use lazyroot_tests::wait::{PATIENCE, until_some};
use roxmltree::Document;
use serde_json::Value;

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn json(lazyroot: &Lazyroot, arguments: &[&str]) -> Value {
    parse(&lazyroot.ok([arguments, &["--format", "json"]].concat()))
}

/// A store with an image of one large file and two that are the same: the image's id.
fn store() -> (Lazyroot, ObjectId) {
    let (lazyroot, source) = (Lazyroot::default(), tempfile::tempdir().unwrap());
    fs::write(source.path().join("large"), large()).unwrap();
    for name in ["same", "twice"] {
        fs::write(source.path().join(name), vec![b's'; 5000]).unwrap();
    }
    lazyroot.import(source.path(), "small");
    let image = json(&lazyroot, &["image", "ls"])[0]["id"].as_str().unwrap().parse().unwrap();
    (lazyroot, image)
}

fn large() -> Vec<u8> {
    (0..300_000u32).map(|number| (number % 251) as u8).collect()
}

/// A guest as the protocol has it, whose reads are known.
struct Guest(UnixStream);

impl Guest {
    /// Connects; also the size of the boot profile that it is offered.
    fn connect(server: &Server, image: ObjectId) -> (Self, u64) {
        let stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Self(stream);
        guest.send(&Request::Hello(Hello { role: Role::Data(image) }));
        let (header, payload) = guest.next();
        match HostMessage::decode(header.kind, &payload).unwrap() {
            HostMessage::Welcome { profile_size, .. } => (guest, profile_size),
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, request: &Request) {
        self.0.write_all(&request.encode(1)).unwrap();
    }

    fn next(&mut self) -> (Header, Vec<u8>) {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        let mut payload = vec![0; header.len as usize];
        self.0.read_exact(&mut payload).unwrap();
        (header, payload)
    }

    /// Sends, and waits until the server has taken it in.
    fn tell(&mut self, request: &Request) {
        self.send(request);
        self.send(&Request::Ping);
        self.next();
    }
}

/// What a server's metrics say: each sample by its name and labels.
fn scrape(address: &str) -> HashMap<String, f64> {
    let (head, body) = get(address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap())).unwrap())
        .collect()
}

fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: lazyroot\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a header");
    (head.to_owned(), body.to_owned())
}

#[test]
fn a_servers_guests_are_seen_in_stats_top_traces_metrics_and_the_next_ones_profile() {
    let (lazyroot, image) = store();
    let mut server = lazyroot.serve_with(&["--metrics", "127.0.0.1:0"]);
    let address = server.next_line();
    let address = address.strip_prefix("metrics at http://").and_then(|rest| rest.strip_suffix("/metrics"));
    let address = address.expect("an address").to_owned();
    assert_eq!(scrape(&address)["lazyroot_bytes_sent_total"], 0.0);
    assert!(get(&address, "/").0.starts_with("HTTP/1.1 404"));

    let (mut guest, offered) = Guest::connect(&server, image);
    assert_eq!(offered, 0, "nothing is known of this image");
    let id = verity::digest(Algorithm::Sha256, &large());
    guest.send(&Request::Read { id, offset: 0, len: 8192 });
    guest.next();
    // Manifest order is name order: large, then the object of both others. The first blocks are read twice.
    let read = |position, block, blocks, at, waited, origin| Read {
        extent: Extent { position, block, blocks },
        at,
        waited,
        origin,
    };
    guest.tell(&Request::Reads(vec![
        read(0, 0, 2, 5_000_000, 1200, Origin::Host),
        read(1, 0, 2, 5_002_000, 10, Origin::Profile),
        read(0, 1, 3, 5_003_000, 100, Origin::Neighbour),
        read(7, 0, 1, 5_004_000, 1, Origin::Host),
        read(0, 60, 1, 5_005_000, 0, Origin::Failed),
    ]));
    let mut counters =
        Counters { verified_bytes: 20_480, profile_bytes: 9000, profile_used_bytes: 5000, ..Counters::default() };
    counters.reads = [1, 1, 1, 0, 0, 2];
    counters.read_bytes = [8192, 12_288, 5000, 0, 0, 777];
    [10, 100, 1200].iter().for_each(|waited| counters.read.add(*waited));
    guest.tell(&Request::Counters(Box::new(counters.clone())));

    let name = format!("serve-{}/1", server.pid());
    let stats = json(&lazyroot, &["stats", &name]);
    let number = |path: &str| stats.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {stats}"));
    assert_eq!((number("/sent_bytes"), number("/requests"), number("/failures")), (8192, 1, 0));
    assert_eq!(number("/touched_bytes"), 4 * 4096 + 5000, "each block once");
    assert_eq!((number("/touched_objects"), number("/image_objects"), number("/image_bytes")), (2, 2, 305_000));
    assert_eq!((number("/guest/verified_bytes"), number("/profile_wasted_bytes")), (20_480, 4000));
    assert_eq!((number("/guest/unseen/count"), number("/guest/unseen/bytes")), (2, 777));
    assert_eq!((number("/guest/reads/neighbour/count"), number("/guest/reads/host/bytes")), (1, 8192));
    assert_eq!((number("/guest/read/count"), number("/guest/read/p50"), number("/guest/read/max")), (3, 127, 2047));
    let table = lazyroot.ok(["stats", &name]);
    for words in ["page cache answers", "neighbour", "33.3 %", "wasted (44.4 %)"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let top = lazyroot.ok(["top"]);
    assert!(top.lines().count() == 2 && top.contains(&name), "{top}");
    assert_eq!(json(&lazyroot, &["top"])[0]["name"], name.as_str());

    let metrics = scrape(&address);
    let sample =
        |name: &str| metrics.get(&format!("lazyroot_{name}")).copied().unwrap_or_else(|| panic!("{name}: {metrics:?}"));
    assert_eq!((sample("bytes_sent_total"), sample("requests_total"), sample("sessions")), (8192.0, 1.0, 1.0));
    assert_eq!(sample("reads_total{origin=\"profile\"}"), 1.0);
    assert_eq!(sample("read_bytes_total{origin=\"neighbour\"}"), 12_288.0);
    assert_eq!((sample("verified_bytes_total"), sample("profile_used_bytes_total")), (20_480.0, 5000.0));
    assert_eq!(sample("read_seconds_bucket{le=\"0.000128\"}"), 2.0);
    assert_eq!((sample("read_seconds_bucket{le=\"+Inf\"}"), sample("read_seconds_count")), (3.0, 3.0));

    let trace = json(&lazyroot, &["trace", &name]);
    let seen: Vec<_> = trace["reads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|read| (read["file"].as_str().unwrap(), read["offset"].as_u64().unwrap(), read["len"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        seen,
        [("/large", 0, 8192), ("/same (and 1 more)", 0, 5000), ("/large", 4096, 12_288), ("/large", 245_760, 4096)]
    );
    let svg = lazyroot.home().join("boot.svg");
    lazyroot.ok(["trace", &name, "--svg", svg.to_str().unwrap()]);
    assert_drawn(&svg, &["/large", "/same (and 1 more)"]);

    // The guest loses its connection, and goes on counting on another: nothing is counted twice.
    drop(guest);
    until_some("the end of the session", || (scrape(&address)["lazyroot_sessions"] == 0.0).then_some(()));
    let (mut guest, offered) = Guest::connect(&server, image);
    counters.verified_bytes += 1;
    guest.tell(&Request::Counters(Box::new(counters)));
    let metrics = scrape(&address);
    assert_eq!((metrics["lazyroot_verified_bytes_total"], metrics["lazyroot_read_seconds_count"]), (20_481.0, 3.0));
    assert_eq!(metrics["lazyroot_sessions_begun_total"], 2.0);

    // What the first session read is now sent ahead, and shown.
    guest.send(&Request::Get { what: Metadata::Profile, offset: 0, len: offered as u32 });
    let (header, payload) = guest.next();
    let ahead: Vec<_> = decode_hints(header.kind, &payload).unwrap().iter().map(|hint| hint.extent).collect();
    let extent = |position, block, blocks| Extent { position, block, blocks };
    assert_eq!(ahead, [extent(0, 0, 4), extent(1, 0, 2)]);
    let profile = json(&lazyroot, &["profile", "show", "small"]);
    assert_eq!((profile["runs"].as_u64(), profile["bytes"].as_u64()), (Some(1), Some(4 * 4096 + 5000)));
    assert_eq!(profile["files"][1]["file"], "/same (and 1 more)");
    assert_eq!(json(&lazyroot, &["profile", "ls"])[0]["names"][0], "small:latest");

    // The trace outlives the server.
    drop((guest, server));
    assert_eq!(json(&lazyroot, &["trace", "small"])["reads"].as_array().unwrap().len(), 4);
    assert!(lazyroot.error(["stats", &name]).contains("there is no VM"));
    lazyroot.ok(["profile", "rm", "small"]);
    assert!(lazyroot.error(["profile", "show", "small"]).contains("profile record"));
    assert_eq!(json(&lazyroot, &["profile", "ls"]).as_array().unwrap().len(), 0);
}

/// A picture that is XML and has these words, each drawn once as the name of a row.
fn assert_drawn(svg: &Path, words: &[&str]) {
    let text = fs::read_to_string(svg).unwrap();
    let document = Document::parse(&text).expect("well-formed");
    for word in words {
        let rows = document.descendants().filter(|node| node.has_tag_name("text") && node.text() == Some(word));
        assert_eq!(rows.count(), 1, "{word}");
    }
}

#[test]
fn a_mounts_reads_are_counted_remembered_and_sent_ahead_next_time() {
    let (lazyroot, _) = store();
    let read_all = |mount: &Path| {
        assert!(fs::read(mount.join("large")).unwrap() == large());
        assert_eq!(fs::read(mount.join("twice")).unwrap(), vec![b's'; 5000]);
    };
    let stats_of = |mount: &Path| json(&lazyroot, &["stats", mount.to_str().unwrap()]);

    let mount = lazyroot.mount("small", &[]);
    read_all(mount.path());
    let stats = until_some("what was read", || {
        Some(stats_of(mount.path())).filter(|stats| stats["touched_percent"].as_f64() == Some(100.0))
    });
    let number = |path: &str| stats.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {stats}"));
    assert_eq!((number("/touched_bytes"), number("/touched_objects")), (305_000, 2));
    assert!(number("/guest/verified_bytes") >= 305_000 && number("/guest/read/count") >= 2, "{stats}");
    assert!(number("/guest/reads/host/count") >= 1 && number("/guest/reads/failed/count") == 0, "{stats}");
    assert!(lazyroot.ok(["top", "--once"]).contains(mount.path().to_str().unwrap()));
    drop(mount);

    let profile = until_some("the profile", || {
        let shown = lazyroot.run(["profile", "show", "small", "--format", "json"]);
        shown.status.success().then(|| parse(&String::from_utf8(shown.stdout).unwrap()))
    });
    assert_eq!((profile["runs"].as_u64(), profile["bytes"].as_u64()), (Some(1), Some(305_000)));
    let files: Vec<_> =
        profile["files"].as_array().unwrap().iter().map(|file| file["file"].as_str().unwrap()).collect();
    assert_eq!(files, ["/large", "/same (and 1 more)"], "in the order of reading");

    let again = lazyroot.mount("small", &[]);
    // In this run the small file is watched; the large one goes into the page cache.
    until_some("what is sent ahead", || {
        let guest = &stats_of(again.path())["guest"];
        (guest["profile_bytes"].as_u64()? >= 5000 && guest["unseen"]["bytes"].as_u64()? >= 300_000).then_some(())
    });
    read_all(again.path());
    let stats = until_some("its use", || {
        let stats = stats_of(again.path());
        (stats["guest"]["reads"]["profile"]["count"].as_u64()? > 0 && stats["profile_wasted_bytes"] == 0)
            .then_some(stats)
    });
    // But for a page that the kernel has taken back meanwhile.
    assert!(stats["guest"]["reads"]["host"]["bytes"].as_u64() < Some(50_000), "it was there: {stats}");
}

#[test]
fn a_vms_boot_is_shown_remembered_and_sent_ahead_next_time() {
    let debian = debian();
    let import = "import json, decimal";
    let run = |options: &[&str], command: &[&str]| {
        debian.ok([&["run", "--hypervisor", "qemu:tcg"], options, &["debian", "--"], command].concat())
    };
    let runs = || json(&debian, &["profile", "show", "debian"])["runs"].as_u64().unwrap();

    run(&[], &["python3", "-c", import]);
    assert_eq!(runs(), 1);
    // The VM is gone, its trace is not.
    let trace = json(&debian, &["trace", "debian"]);
    let milestones: Vec<_> =
        trace["milestones"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(milestones[..2], ["init", "mounted"]);
    let files: Vec<_> = trace["reads"].as_array().unwrap().iter().map(|one| one["file"].as_str().unwrap()).collect();
    let position =
        |name: &str| files.iter().position(|file| file.contains(name)).unwrap_or_else(|| panic!("{name}: {files:?}"));
    assert!(position("bin/python3") < position("/json/"), "in the order of reading: {files:?}");
    let svg = debian.home().join("boot.svg");
    debian.ok(["trace", "debian", "--svg", svg.to_str().unwrap()]);
    assert_drawn(&svg, &["kernel starts", "guest-init runs", "root mounted"]);

    run(&["--no-profile"], &["true"]);
    assert_eq!(runs(), 1, "a run without the profile does not change it");

    let script = format!("python3 -c '{import}'; sleep 1000");
    debian.ok(["run", "-d", "--hypervisor", "qemu:tcg", "--name", "seen", "debian", "--", "sh", "-c", &script]);
    // Until the import is through: a guest tells what it has read as it reads, so a look before may find anything.
    let stats = until_some("what was sent ahead", || {
        let stats = json(&debian, &["stats", "seen"]);
        let (watched, unseen) = (&stats["guest"]["reads"]["profile"], &stats["guest"]["unseen"]);
        // Python alone is larger.
        (watched["count"].as_u64()? > 10 && unseen["bytes"].as_u64()? > 5_000_000).then_some(stats)
    });
    assert_eq!((stats["kind"].as_str(), stats["image_name"].as_str()), (Some("vm"), Some("debian:latest")));
    assert!(stats["touched_percent"].as_f64() < Some(50.0), "a part of the image: {stats}");
    assert!(debian.ok(["top"]).contains("seen"));
    debian.ok(["stop", "seen"]);
    // One that is kept keeps its figures.
    assert!(json(&debian, &["stats", "seen"])["sent_bytes"].as_u64() >= stats["sent_bytes"].as_u64());
    assert!(!json(&debian, &["trace", "seen"])["reads"].as_array().unwrap().is_empty());
    debian.ok(["rm", "seen"]);
    assert_eq!(runs(), 2);

    let record = ["profile", "record", "--hypervisor", "qemu:tcg", "debian", "--", "python3", "-c", "import ssl"];
    debian.ok(record);
    let profile = json(&debian, &["profile", "show", "debian"]);
    assert_eq!(profile["runs"], 1, "it begins anew");
    let files: Vec<_> = profile["files"].as_array().unwrap().iter().map(|one| one["file"].as_str().unwrap()).collect();
    assert!(
        files.iter().any(|file| file.ends_with("/ssl.py")) && !files.iter().any(|file| file.contains("/decimal")),
        "{files:?}"
    );
}
