//! Promises about what comes before it is asked for: neighbours, scans and boot profiles, on real mounts.
//!
//! Mounting needs root; `make test` sees to it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lazyroot::home::Home;
use lazyroot::serve::{Activity, ActivityState, BootHistory, Catalog, Endpoint, Listener, ServedImage, Server};
use lazyroot::store::{Profile, ProfileFile, Store};
use lazyroot_proto::reads::{Origin, Read};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use lazyroot_tests::data;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::wait::until;

const IMAGE: &str = "tree";
/// Small files in the tree: enough for a scan to get going.
const FILES: u64 = 1200;
/// Each of them, in bytes.
const SMALL: u64 = 3000;
/// The large file, in bytes.
const LARGE: u64 = 5 << 20;

/// A store with one image, and a server of it that can be asked what its guests do.
struct Bench {
    lazyroot: Lazyroot,
    source: tempfile::TempDir,
    /// Runs the server.
    _runtime: tokio::runtime::Runtime,
    server: Arc<Server>,
    socket: PathBuf,
    profile: ProfileFile,
    index: Arc<lazyroot_proto::ObjectIndex>,
    /// Bytes of the manifest and the index, which every mount fetches.
    metadata: u64,
}

impl Bench {
    fn new() -> Self {
        let (lazyroot, source) = (Lazyroot::default(), tempfile::tempdir().unwrap());
        for number in 0..FILES {
            data::write_unique(&small_file(source.path(), number), SMALL, number + 1).unwrap();
        }
        data::write_unique(&source.path().join("large"), LARGE, FILES + 1).unwrap();
        lazyroot.import(source.path(), IMAGE);
        let store = Store::open(&Home::open().unwrap(), Some(&lazyroot.home().join("repository"))).unwrap();
        let image = store.resolve(IMAGE).unwrap();
        let profile = store.profile(&image.id);
        let served =
            ServedImage::open(&image, store.source()).unwrap().with_history(BootHistory::of_profile(profile.clone()));
        let index = served.index.clone();
        let metadata = served.manifest_size + served.index_bytes.len() as u64;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = Arc::new(Server::new(Catalog::of([served]), None, |_| ()));
        let socket = lazyroot.home().join("test.sock");
        {
            let _guard = runtime.enter();
            runtime.spawn(server.clone().serve(Listener::bind(&Endpoint::Unix(socket.clone())).unwrap()));
        }
        Self { lazyroot, source, _runtime: runtime, server, socket, profile, index, metadata }
    }

    /// Mounts the image, does `work` with it, unmounts it, and returns what the server has seen of it.
    fn mounted<T>(&self, work: impl FnOnce(&Path, &Activity) -> T) -> (T, ActivityState) {
        let endpoint = Endpoint::Unix(self.socket.clone()).to_string();
        let mount = self.lazyroot.mount(IMAGE, &["--connect", &endpoint]);
        let activity = self.server.activities().pop().expect("a mount has a session");
        let done = work(mount.path(), &activity);
        drop(mount);
        until("the session ends", || activity.state().ended);
        let state = activity.state().clone();
        (done, state)
    }

    fn position(&self, id: ObjectId) -> u32 {
        self.index.position(&id).expect("an object of the image")
    }

    fn small(&self, number: u64) -> (Vec<u8>, u32) {
        let content = fs::read(small_file(self.source.path(), number)).unwrap();
        let position = self.position(verity::digest(Algorithm::Sha256, &content));
        (content, position)
    }

    /// The file in the repository that has this content.
    fn object(&self, content: &[u8]) -> PathBuf {
        let id = verity::digest(Algorithm::Sha256, content);
        self.lazyroot.home().join("repository/objects").join(id.object_path())
    }

    fn entries(&self) -> Profile {
        self.profile.read().expect("a profile was written")
    }
}

fn small_file(tree: &Path, number: u64) -> PathBuf {
    tree.join(format!("{number:06}"))
}

/// Reads a few files here and there, and a range of the large one, as a boot does.
fn boot(bench: &Bench, tree: &Path) -> Vec<u32> {
    let mut positions = Vec::new();
    for number in (0..FILES).step_by(97).map(|number| (number * 7) % FILES) {
        let (content, position) = bench.small(number);
        assert_eq!(fs::read(small_file(tree, number)).unwrap(), content);
        positions.push(position);
    }
    let mut range = vec![0; 300_000];
    fs::File::open(tree.join("large")).unwrap().read_exact_at(&mut range, 2 << 20).unwrap();
    let whole = fs::read(bench.source.path().join("large")).unwrap();
    assert!(range == whole[2 << 20..][..range.len()], "the range is what was imported");
    positions
}

/// Reads all small files in order, never faster than the mount asks for them: how many it had asked for when the program
/// came is then not a matter of who gets the processor.
fn walk(bench: &Bench, tree: &Path, activity: &Activity) {
    let before = activity.state().requests;
    for number in 0..FILES {
        // Nobody asks for the first of a sequence, and for the next batch, until the program has come that far.
        let deadline = Instant::now() + Duration::from_millis(200);
        while activity.state().requests - before <= number && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(fs::read(small_file(tree, number)).unwrap(), bench.small(number).0, "file {number}");
    }
}

#[test]
fn a_walk_through_many_small_files_asks_for_few_of_them_one_by_one() {
    let bench = Bench::new();
    let ((), state) = bench.mounted(|tree, activity| {
        walk(&bench, tree, activity);
        let large = fs::read(bench.source.path().join("large")).unwrap();
        assert!(fs::read(tree.join("large")).unwrap() == large, "the large file behind them is what was imported");
    });
    let of_large = |read: &&Read| bench.index.get(read.extent.position).is_some_and(|(_, size)| size == LARGE);
    let (small, large): (Vec<&Read>, Vec<&Read>) = state.reads.iter().partition(|read| !of_large(read));
    // Only those that begin a sequence, and those between two batches.
    let alone = small.iter().filter(|read| read.origin == Origin::Host).count() as u64;
    assert!(alone < FILES / 20, "{alone} of {FILES} files were asked for one by one");
    assert!(state.requests < FILES + 100, "{} objects sent for {FILES}", state.requests);
    assert!(state.counters.neighbour_bytes > SMALL * FILES / 2);
    assert!(state.counters.verified_bytes >= SMALL * FILES + LARGE);
    // So is a large file that a scan comes to, but for what the kernel asks for in the moment in which it is opened: the
    // first 256 KiB (64 blocks), of which the parts are asked for at once. Where the mount gets no processor, the
    // kernel's read-ahead overtakes it for a part or two.
    let alone = large.iter().filter(|read| read.origin == Origin::Host && read.extent.block >= 64).count();
    assert!(alone < large.len() / 5 && large.len() > 10, "{large:?}");
}

/// Of those that come together, many are hashed side by side.
#[test]
fn what_is_damaged_or_gone_in_the_midst_of_a_walk_fails_alone() {
    let bench = Bench::new();
    let (damaged, gone) = (300..304, 500..502);
    for number in damaged.clone() {
        let file = fs::OpenOptions::new().write(true).open(bench.object(&bench.small(number).0)).unwrap();
        file.write_all_at(b"\xff\x00\xff", number).unwrap();
    }
    for number in gone.clone() {
        fs::remove_file(bench.object(&bench.small(number).0)).unwrap();
    }
    bench.mounted(|tree, _| {
        for number in 0..FILES {
            match fs::read(small_file(tree, number)) {
                Ok(content) => assert_eq!(content, bench.small(number).0, "file {number}"),
                Err(error) => {
                    assert!(damaged.contains(&number) || gone.contains(&number), "file {number}: {error}");
                    assert_eq!(error.raw_os_error(), Some(5));
                }
            }
        }
        assert!(damaged.chain(gone).all(|number| fs::read(small_file(tree, number)).is_err()));
    });
}

/// Later than that, files go to the page cache and no more to the layer in memory.
#[test]
fn a_walk_after_the_minute_of_a_boot_still_brings_its_files_along() {
    let bench = Bench::new();
    let ((), state) = bench.mounted(|tree, activity| {
        thread::sleep(Duration::from_secs(62));
        walk(&bench, tree, activity);
    });
    assert!(state.requests < FILES + 100, "{} objects sent for {FILES}", state.requests);
    assert!(state.counters.neighbour_bytes > SMALL * FILES / 2);
}

#[test]
fn random_reads_bring_nothing_along() {
    let bench = Bench::new();
    let ((), state) = bench.mounted(|tree, _| {
        for number in (0..200).map(|number| (number * 389) % FILES) {
            fs::read(small_file(tree, number)).unwrap();
        }
    });
    let content = state.sent_bytes - bench.metadata;
    assert_eq!(content, 200 * SMALL, "200 files of {SMALL} bytes, each once");
    assert_eq!(state.counters.neighbour_bytes, 0);
}

#[test]
fn what_the_first_mount_read_is_there_before_the_second_asks() {
    let bench = Bench::new();
    let (positions, first) = bench.mounted(|tree, _| boot(&bench, tree));
    assert!(first.reads.iter().any(|read| read.origin == Origin::Host && read.extent.position == positions[0]));
    assert_eq!(bench.entries().runs, 1);

    let (_, second) = bench.mounted(|tree, activity| {
        let come = |state: &ActivityState| unseen(state) + watched(state);
        until("the profile has come", || come(&activity.state()) >= positions.len() as u64 * SMALL + 300_000);
        boot(&bench, tree)
    });
    // How far behind the range the kernel reads by itself differs from run to run.
    let end = ((2 << 20) + 300_000_u32).div_ceil(verity::BLOCK as u32);
    let waited = second.reads.iter().filter(|read| read.origin == Origin::Host && read.extent.block < end).count();
    assert_eq!(waited, 0, "nothing had to be asked for: {:?}", second.reads);
    assert!(
        second.counters.profile_used_bytes + unseen(&second) >= 300_000,
        "so the large file's range came ahead, too"
    );
    assert_eq!(bench.entries().runs, 2);
}

/// As a program does that jumps about in a library.
#[test]
fn what_was_read_here_and_there_in_a_large_file_is_in_the_page_cache_before_a_program_asks() {
    let bench = Bench::new();
    let large = fs::read(bench.source.path().join("large")).unwrap();
    let position = bench.position(verity::digest(Algorithm::Sha256, &large));
    let offsets: Vec<usize> = (0..20).map(|number| number * 7 % 20 * 200_000).collect();
    let read_all = |tree: &Path| {
        let file = fs::File::open(tree.join("large")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        for offset in &offsets {
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, *offset as u64).unwrap();
            assert!(bytes == large[*offset..][..bytes.len()], "at {offset} is what was imported");
        }
    };
    bench.mounted(|tree, _| read_all(tree));
    let hints = bench.entries().hints(&bench.index);
    let of_large: Vec<_> = hints.iter().filter(|hint| hint.extent.position == position).collect();
    assert!(of_large.len() >= 20 && of_large.iter().all(|hint| !hint.watched), "not its turn: {of_large:?}");

    let ((), second) = bench.mounted(|tree, activity| {
        let bytes: u64 = of_large.iter().filter_map(|hint| Some(hint.extent.bytes(LARGE)?.1)).sum();
        until("the kernel has read it", || unseen(&activity.state()) >= bytes);
        read_all(tree);
    });
    let asked_for = second.reads.iter().filter(|read| read.origin != Origin::Preloaded);
    let asked_for: Vec<_> = asked_for.filter(|read| read.extent.position == position).collect();
    // A kernel that is to save memory takes a page back now and then that nobody has used yet.
    assert!(asked_for.len() < offsets.len() / 4, "{asked_for:?}");
    assert_eq!((second.counters.profile_bytes, second.counters.profile_used_bytes), (0, 0));
    let entries = bench.entries().entries;
    assert!(entries.iter().filter(|entry| entry.position == position && entry.missed == 0).count() >= 20, "kept");
}

#[test]
fn a_scan_that_the_profile_knows_brings_nothing_twice() {
    let bench = Bench::new();
    let walk = |tree: &Path| {
        for number in 0..FILES {
            fs::read(small_file(tree, number)).unwrap();
        }
        fs::read(tree.join("large")).unwrap();
    };
    bench.mounted(|tree, _| walk(tree));
    let ((), second) = bench.mounted(|tree, _| walk(tree));
    let (fetched, content) = (second.sent_bytes - bench.metadata, FILES * SMALL + LARGE);
    // But for leaves, the profile, and what is asked for in the same moment. In one run of a hundred 0.5 MB more came: why is not
    // known; perhaps of a run given up for a late read, which ends none any more. A run is 1 MiB ahead of the program at most;
    // all of the large file would be 5 MiB.
    assert!(fetched < content + content / 20 + (1 << 20), "{fetched} bytes fetched of {content}");
}

fn unseen(state: &ActivityState) -> u64 {
    state.counters.read_bytes[Origin::Preloaded as usize]
}

fn watched(state: &ActivityState) -> u64 {
    state.counters.profile_bytes
}

#[test]
fn a_profile_of_something_else_does_no_harm() {
    let bench = Bench::new();
    bench.mounted(|tree, _| boot(&bench, tree));
    // What is not read leaves, what is read comes in, and the bytes are always right.
    for _ in 0..2 {
        bench.mounted(|tree, _| {
            for number in 500..520 {
                assert_eq!(fs::read(small_file(tree, number)).unwrap(), bench.small(number).0);
            }
        });
    }
    let (_, position) = bench.small(510);
    assert!(bench.entries().entries.iter().any(|entry| entry.position == position));
}

#[test]
fn damage_that_comes_with_a_profile_is_an_error_and_never_wrong_bytes() {
    let bench = Bench::new();
    bench.mounted(|tree, _| boot(&bench, tree));
    let (content, _) = bench.small(0);
    let large = fs::read(bench.source.path().join("large")).unwrap();
    for (content, offset) in [(&content, 1000), (&large, (2 << 20) + 5000)] {
        let file = fs::OpenOptions::new().write(true).open(bench.object(content)).unwrap();
        file.write_all_at(b"\xff\x00\xff", offset).unwrap();
    }
    let ((), state) = bench.mounted(|tree, activity| {
        until("the profile has come", || watched(&activity.state()) > 0);
        let small = fs::read(small_file(tree, 0)).unwrap_err();
        let file = fs::File::open(tree.join("large")).unwrap();
        let large = file.read_exact_at(&mut [0; 100], (2 << 20) + 5000).unwrap_err();
        assert_eq!((small.raw_os_error(), large.raw_os_error()), (Some(5), Some(5)));
    });
    assert!(state.milestones.iter().any(|event| event.text.contains("does not match its digest")));
}
