//! Promises about the sources: arrows between files and rooms run one way, no file is long, and every folder says
//! what lives in it. Needs no program and no root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lazyroot_tests::imports::{self, Graph};

/// Lines of a file, tests included.
const LONGEST: usize = 500;

/// The crates with rooms, and the order of those: each may import from those to its right, and not from those to its
/// left. Other folders and files are rooms too, without an order. Cycles are forbidden for all.
const CRATES: [(&str, &[&[&str]]); 4] = [
    ("proto", &[]),
    ("archive", &[]),
    ("guest-init", &[&["init", "agent"], &["mount"], &["fuse"], &["ahead"], &["content"], &["link"]]),
    ("host", &[&["cli"], &["vm"], &["serve"], &["store"]]),
];

/// The repository.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository")
}

/// Fails with the list of what is wrong, if there is any.
fn assert_none(wrong: BTreeSet<String>) {
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The crate's cycles, each named once: the crate and the files on the shortest way round.
fn cycles(name: &str, graph: &Graph) -> BTreeSet<String> {
    let ways = graph.keys().filter_map(|file| imports::cycle(graph, file));
    ways.map(|mut way| {
        let first = way.iter().enumerate().min_by_key(|(_, file)| *file).map_or(0, |(at, _)| at);
        way.rotate_left(first);
        let names: Vec<_> = way.iter().map(|file| file.with_extension("").display().to_string()).collect();
        format!("{name}: {}", names.join(" -> "))
    })
    .collect()
}

/// The rooms: top folders of a crate, and its files beside them.
fn rooms(graph: &Graph) -> Graph {
    let room = |file: &Path| PathBuf::from(file.iter().next().expect("a name")).with_extension("");
    let mut rooms = Graph::new();
    for (from, targets) in graph.iter().filter(|(from, _)| from.as_path() != Path::new("lib.rs")) {
        let from = room(from);
        let targets = targets.iter().map(|to| room(to)).filter(|to| *to != from);
        rooms.entry(from.clone()).or_default().extend(targets);
    }
    rooms
}

#[test]
fn files_import_from_each_other_in_no_circle() {
    let of_crate = |(name, _): &(&str, _)| cycles(name, &imports::graph(&top().join(name).join("src")));
    assert_none(CRATES.iter().flat_map(of_crate).collect());
}

#[test]
fn arrows_between_rooms_run_one_way() {
    let mut wrong = BTreeSet::new();
    for (name, order) in CRATES {
        let graph = imports::graph(&top().join(name).join("src"));
        let rooms = rooms(&graph);
        wrong.extend(cycles(name, &rooms));
        let places: BTreeMap<&str, usize> =
            order.iter().enumerate().flat_map(|(at, rooms)| rooms.iter().map(move |room| (*room, at))).collect();
        let missing = places.keys().filter(|room| !rooms.contains_key(Path::new(room)));
        wrong.extend(missing.map(|room| format!("{name}: there is no room {room}")));
        let place = |room: &Path| room.to_str().and_then(|room| places.get(room));
        for (from, targets) in &rooms {
            let against = targets.iter().filter(|to| place(from).zip(place(to)).is_some_and(|(from, to)| from > to));
            wrong.extend(against.map(|to| format!("{name}: {} imports from {}", from.display(), to.display())));
        }
    }
    assert_none(wrong);
}

#[test]
fn no_source_file_is_long() {
    let lines = |file: &Path| fs::read_to_string(top().join(file)).expect("UTF-8").lines().count();
    let long = imports::files(top()).into_iter().filter(|file| lines(file) > LONGEST);
    assert_none(long.map(|file| file.display().to_string()).collect());
}

#[test]
fn every_folder_says_what_lives_in_it() {
    let mut wrong = BTreeSet::new();
    for file in imports::files(top()) {
        let Some(folder) = file.parent().filter(|folder| folder.iter().any(|part| part == "src")) else { continue };
        let is_top = folder.ends_with("src") || folder.ends_with("src/bin");
        let inside = top().join(folder).join("mod.rs");
        let beside = top().join(folder).with_extension("rs");
        let text = fs::read_to_string(inside).or_else(|_| fs::read_to_string(beside)).unwrap_or_default();
        if !is_top && text.lines().take_while(|line| line.starts_with("//!")).count() < 2 {
            wrong.insert(folder.display().to_string());
        }
    }
    assert_none(wrong);
}
