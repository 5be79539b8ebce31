//! Promises about looking inside images without mounting them: `lazyroot store ls`, `cat`, `stat`, `tree`, `find`,
//! `du` and `cp`, on trees with everything in them and on manifests that nobody should have made.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use composefs::erofs::writer::{ValidatedFileSystem, mkfs_erofs};
use composefs::fsverity::Sha256HashValue;
use composefs::generic_tree::{Directory, Inode, LeafContent, Stat};
use composefs::repository::Repository;
use composefs::tree::{FileSystem, RegularFile};
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use lazyroot::store::Tree;
use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::awkward::{awkward_tree, pattern};
use lazyroot_tests::inputs::LAZYROOT;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::programs::copy_program;
use lazyroot_tests::tree;
use proptest::prelude::*;
use rustix::fs::CWD;
use serde_json::Value;
use tempfile::TempDir;

fn json(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A path as JSON has it.
fn path_of(file: &Value) -> PathBuf {
    match file["path_hex"].as_str() {
        Some(hex) => {
            let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
            OsString::from_vec(digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()).into()
        }
        None => file["path"].as_str().unwrap().into(),
    }
}

/// All paths below a folder, `/` first, the folder itself included.
fn paths(root: &Path, below: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(if below.is_empty() { "/" } else { below })];
    for entry in fs::read_dir(root.join(below.trim_start_matches('/'))).unwrap() {
        let entry = entry.unwrap();
        let path = PathBuf::from("/").join(below.trim_start_matches('/')).join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(paths(root, path.to_str().unwrap())),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

#[test]
fn a_listing_says_what_the_file_system_said() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    let files = json(&lazyroot.ok(["store", "ls", "-R", "--format", "json", "a"]));
    let mut listed = Vec::new();
    for file in &files {
        let path = path_of(file);
        let real = source.path().join(path.strip_prefix("/").unwrap());
        let meta = fs::symlink_metadata(&real).unwrap();
        assert_eq!(file["mode"], format!("{:04o}", meta.mode() & 0o7777), "{file}");
        assert_eq!((&file["uid"], &file["gid"]), (&Value::from(meta.uid()), &Value::from(meta.gid())), "{file}");
        let time = chrono::DateTime::from_timestamp(meta.mtime(), meta.mtime_nsec() as u32).unwrap();
        assert_eq!(file["modified"], time.to_rfc3339(), "{file}");
        if !meta.is_dir() {
            assert_eq!(file["links"], meta.nlink(), "{file}");
        }
        if meta.is_file() {
            assert_eq!(file["size"], meta.size(), "{file}");
            let object = verity::digest(Algorithm::Sha256, &fs::read(&real).unwrap()).to_string();
            assert_eq!(file["object"], if meta.size() > 64 { Value::from(object) } else { Value::Null }, "{file}");
        }
        if meta.is_symlink() {
            assert_eq!(file["target"], fs::read_link(&real).unwrap().to_str().unwrap());
        }
        listed.push(path);
    }
    listed.push("/".into());
    listed.sort();
    assert_eq!(listed, paths(source.path(), ""));

    // For people: one line a file, whatever is in its name.
    let table = lazyroot.ok(["store", "ls", "a"]);
    assert_eq!(table.lines().count(), fs::read_dir(source.path()).unwrap().count());
    assert!(table.contains("sp ace\\nline\"quote\\\\\n") && table.contains("not-\\xff-utf8\n"), "{table}");
    let line = |name: &str| table.lines().find(|line| line.ends_with(name)).unwrap().to_owned();
    assert!(line(" page").starts_with("-rwsr-xr-x"), "{}", line(" page"));
    assert!(line(" empty-dir").starts_with("drwxrwxrwt"), "{}", line(" empty-dir"));
    assert!(line(" block").contains(" 259, 70000 "), "{}", line(" block"));
    assert!(line(" absolute -> /deep/er").starts_with('l'));
    // A file, a link kept and followed, a folder itself.
    assert_eq!(lazyroot.ok(["store", "ls", "a:/page"]).lines().count(), 1);
    assert!(lazyroot.ok(["store", "ls", "a:/absolute"]).contains("-> /deep/er"));
    assert!(lazyroot.ok(["store", "ls", "a:/absolute/"]).ends_with(" still\n"));
    assert!(lazyroot.ok(["store", "ls", "-d", "a:/deep"]).ends_with(" /deep\n"));
    assert!(lazyroot.error(["store", "ls", "a:/nowhere\x1b[2J"]).contains("image a has no /nowhere\\x1b[2J"));

    let tree = lazyroot.ok(["store", "tree", "-L", "2", "a:/deep"]);
    assert!(tree.starts_with("/deep\n├── er\n│   └── still\n├── file-with"), "{tree}");
    assert_eq!(lazyroot.ok(["store", "tree", "a"]).lines().count(), paths(source.path(), "").len());
}

#[test]
fn files_are_found_by_what_they_are() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    let find = |options: &[&str]| lazyroot.ok(["store", "find", "a"].iter().chain(options));
    assert_eq!(find(&[]).lines().count(), paths(source.path(), "").len());
    assert_eq!(find(&["--name", "page*"]), "/deep/er/still/page-again\n/page\n");
    assert_eq!(find(&["--type", "l", "--path", "/deep/*"]), "/deep/relative\n");
    assert_eq!(find(&["--type", "d"]).lines().count(), 5);
    assert_eq!(find(&["--min-size", "3000001", "--type", "f"]), "/deep/large-too\n/large\n");
    let object = verity::digest(Algorithm::Sha256, &pattern(4096)).to_string();
    assert_eq!(find(&["--object", &object]), "/deep/er/still/page-again\n/page\n");
    let raw = lazyroot.run(["store", "find", "a", "-0", "--name", "*\n*"]);
    assert_eq!(raw.stdout, b"/sp ace\nline\"quote\\\0");
    assert_eq!(json(&find(&["--format", "json", "--name", "sparse"]))[0]["size"], (1 << 20) + 3);
    assert_eq!(find(&["--name", "none", "--format", "json"]), "[]\n");
}

#[test]
fn content_comes_out_as_it_went_in() {
    let (lazyroot, source, out) = (Lazyroot::default(), awkward_tree(), TempDir::with_prefix("lr").unwrap());
    fs::write(source.path().join("huge"), pattern(9_000_001)).unwrap();
    lazyroot.import(source.path(), "a");
    for name in ["huge", "large", "page", "inline", "empty", "sparse", "deep/relative"] {
        let output = lazyroot.run(["store", "cat", &format!("a:/{name}")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == fs::read(source.path().join(name)).unwrap(), "{name}");
    }
    let two = lazyroot.run(["store", "cat", "a:/one", "a:/page"]);
    assert_eq!(two.stdout, [pattern(1), pattern(4096)].concat());
    let odd = OsString::from_vec(b"a:/not-\xff-utf8".to_vec());
    assert_eq!(lazyroot.run([OsStr::new("store"), OsStr::new("cat"), &odd]).stdout, b"bytes");
    assert!(lazyroot.error(["store", "cat", "a:/deep"]).contains("no regular file"));
    assert!(lazyroot.error(["store", "cat", "a:/dangling"]).contains("has no file /dangling"));
    assert!(lazyroot.error(["store", "cat", "a:/circle"]).contains("too many symbolic links"));

    let whole = out.path().join("whole");
    lazyroot.ok([OsStr::new("store"), OsStr::new("cp"), OsStr::new("a:/"), whole.as_os_str()]);
    tree::assert_same(source.path(), &whole);
    assert!(fs::metadata(whole.join("sparse")).unwrap().blocks() < 64, "holes stay holes");
    // Into a folder that is there, and never over a file.
    lazyroot.ok(["store", "cp", "a:/deep/er", out.path().to_str().unwrap()]);
    tree::assert_same(&source.path().join("deep/er"), &out.path().join("er"));
    let error = lazyroot.error(["store", "cp", "a:/page", whole.join("one").to_str().unwrap()]);
    assert!(error.contains("File exists"), "{error}");
    assert_eq!(fs::read(whole.join("one")).unwrap(), pattern(1));

    // A damaged object is an error, and no bytes of it come out.
    let id = verity::digest(Algorithm::Sha256, &pattern(4096));
    let object = lazyroot.home().join("repository/objects").join(id.object_path());
    fs::write(&object, vec![1; 4096]).unwrap();
    let output = lazyroot.run(["store", "cat", "a:/page"]);
    assert_eq!(output.stdout, b"");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("object {id} is damaged")));
}

#[test]
fn a_file_tells_who_shares_it_and_a_folder_what_it_takes() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    fs::write(source.path().join("page"), b"changed").unwrap();
    fs::remove_dir_all(source.path().join("deep")).unwrap();
    lazyroot.import(source.path(), "b");
    let stat = |place: &str| json(&lazyroot.ok(["store", "stat", "--format", "json", place])).remove(0);
    assert_eq!(stat("a:/large")["shared_with"], serde_json::json!(["b:latest"]));
    assert_eq!(stat("a:/page")["shared_with"], serde_json::json!([]));
    assert_eq!(stat("a:/large")["attributes"]["user.comment"].as_str().unwrap().len(), 400);
    assert_eq!(stat("a:/fifo")["attributes"]["trusted.note"], "6b657074");
    let text = lazyroot.ok(["store", "stat", "a:/large", "a:/inline"]);
    assert!(text.contains("shared with b:latest\n") && text.contains("in the manifest"), "{text}");
    assert!(text.contains("modified    2020-09-13 12:26:40.123456789\n"), "{text}");

    let du = |options: &[&str]| json(&lazyroot.ok(["store", "du", "--format", "json"].iter().chain(options)));
    let rows: BTreeMap<String, Value> =
        du(&["a"]).into_iter().map(|row| (row["path"].as_str().unwrap().to_owned(), row)).collect();
    let inspect: Value = serde_json::from_str(&lazyroot.ok(["image", "inspect", "a"])).unwrap();
    let root = &rows["/"];
    assert_eq!(root["apparent_bytes"], inspect["file_bytes"]);
    assert_eq!(root["files"], inspect["files"]);
    assert_eq!(root["unique_bytes"], 4096, "the page is in no other image now");
    let shared = inspect["object_bytes"].as_u64().unwrap() - 4096;
    assert_eq!(root["shared_bytes"], shared);
    // The page is met in /deep first, and so is the hard-linked large file.
    assert_eq!(rows["/deep"]["unique_bytes"], 4096);
    assert_eq!(rows["/deep"]["shared_bytes"], 3_000_001);
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert_eq!(du(&["a:/deep", "--depth", "0"]).len(), 1);
    assert_eq!(du(&["a:/large"])[0]["shared_bytes"], 3_000_001);
}

#[test]
fn looking_inside_needs_no_root() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    // A store that this user may read and not write, and a home of its own.
    let home = TempDir::with_prefix("lr").unwrap();
    let nobody = 65_534;
    // What was built may be in a folder that is closed to others.
    let program = home.path().join("lazyroot");
    copy_program(&LAZYROOT.path(), &program);
    std::os::unix::fs::chown(home.path(), Some(nobody), Some(nobody)).unwrap();
    for open in [lazyroot.home().to_owned(), lazyroot.home().join("repository")] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--store").arg(lazyroot.home().join("repository")).args(arguments);
        command.env("LAZYROOT_HOME", home.path()).env("XDG_CONFIG_HOME", home.path().join("config"));
        command.current_dir(home.path()).uid(nobody).gid(nobody);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {errors}");
        (output.stdout, errors)
    };
    assert_eq!(run(&["store", "cat", "a:/large"]).0, pattern(3_000_001));
    for command in [&["store", "ls", "-R", "a"][..], &["store", "du", "a"], &["store", "stat", "a:/large"]] {
        assert!(!run(command).0.is_empty());
    }
    let (_, said) = run(&["store", "cp", "a:/", "copy"]);
    // Two devices, a capability, a trusted attribute.
    assert!(said.contains("left out 2 device nodes and 2 extended attributes"), "{said}");
    let copy = home.path().join("copy");
    assert_eq!(fs::read(copy.join("deep/er/still/page-again")).unwrap(), pattern(4096));
    let meta = fs::metadata(copy.join("page")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (nobody, 0o755), "a set-user-id bit is the image's owner's");
}

/// An image of any manifest, as a store that was tampered with may have it.
fn install(lazyroot: &Lazyroot, name: &str, manifest: &[u8]) {
    lazyroot.ok(["image", "ls"]);
    let repository = Repository::<Sha256HashValue>::open_path(CWD, lazyroot.home().join("repository")).unwrap();
    repository.write_image(Some(&format!("{name}:latest")), manifest).unwrap();
}

/// With an owner that only an extended inode has room for.
fn stat() -> Stat {
    Stat { st_mode: 0o755, st_uid: 100_000, st_gid: 0, st_mtim_sec: 0, st_mtim_nsec: 0, xattrs: Default::default() }
}

/// `/first/second/third`, a file `/first/file` of one object, and a file in the manifest.
fn small_manifest() -> Vec<u8> {
    let mut fs = FileSystem::<Sha256HashValue>::new(stat());
    let object = composefs::fsverity::compute_verity(b"an object");
    let external = fs.push_leaf(stat(), LeafContent::Regular(RegularFile::External(object, 100)));
    let inline = fs.push_leaf(stat(), LeafContent::Regular(RegularFile::Inline(pattern(60).into())));
    let mut second = Directory::new(stat());
    second.insert(OsStr::new("third"), Inode::Directory(Box::new(Directory::new(stat()))));
    let mut first = Directory::new(stat());
    first.insert(OsStr::new("second"), Inode::Directory(Box::new(second)));
    first.insert(OsStr::new("file"), Inode::leaf(external));
    first.insert(OsStr::new("inline"), Inode::leaf(inline));
    fs.root.insert(OsStr::new("first"), Inode::Directory(Box::new(first)));
    mkfs_erofs(&ValidatedFileSystem::new(fs).unwrap()).into()
}

/// Where the inode of `path` begins, and its number.
fn inode(manifest: &[u8], path: &str) -> (usize, u64) {
    let erofs = EroFS::new(SliceImage::new(manifest)).unwrap();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = if parent.is_empty() { "/" } else { parent };
    let entry =
        erofs.read_dir(parent).unwrap().map(Result::unwrap).find(|e| e.dir_entry.file_name() == name.as_bytes());
    let number = entry.unwrap().dir_entry.nid();
    let block = erofs.super_block();
    (((u64::from(block.meta_blk_addr) << block.blk_size_bits) + number * 32) as usize, number)
}

/// Makes every folder entry that leads to `from` lead to `to`.
fn redirect(manifest: &mut [u8], from: &str, to: &str) {
    let (from, to) = (inode(manifest, from).1, inode(manifest, to).1);
    let mut found = 0;
    for at in 0..manifest.len() - 12 {
        // struct erofs_dirent: number, offset of the name, type 2 (folder), zero.
        let entry = &manifest[at..at + 12];
        if entry[..8] == from.to_le_bytes() && entry[10..] == [2, 0] && entry[9] < 16 {
            manifest[at..at + 8].copy_from_slice(&to.to_le_bytes());
            found += 1;
        }
    }
    assert!(found > 0);
}

/// Claims a size in an extended inode (bit 0 of its format).
fn claim_size(manifest: &mut [u8], path: &str, size: u64) {
    let (at, _) = inode(manifest, path);
    assert_eq!(manifest[at] & 1, 1, "an extended inode");
    manifest[at + 8..at + 16].copy_from_slice(&size.to_le_bytes());
}

#[test]
fn manifests_that_lead_astray_are_one_clear_error() {
    let lazyroot = Lazyroot::default();
    let manifest = small_manifest();
    install(&lazyroot, "sound", &manifest);
    assert_eq!(lazyroot.ok(["store", "find", "sound"]).lines().count(), 6);

    let mut circle = manifest.clone();
    redirect(&mut circle, "/first/second/third", "/first");
    install(&lazyroot, "circle", &circle);
    let mut twice = manifest.clone();
    redirect(&mut twice, "/first/second/third", "/first/second");
    install(&lazyroot, "twice", &twice);
    for (image, why) in [("circle", "cycle"), ("twice", "cycle")] {
        for command in [&["store", "ls", "-R"][..], &["store", "find"], &["store", "tree"], &["store", "du"]] {
            let error = lazyroot.error(command.iter().chain(&[image]));
            assert!(error.contains("manifest") && error.contains("damaged") && error.contains(why), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        // A path without walking still works.
        assert_eq!(lazyroot.run(["store", "cat", &format!("{image}:/first/inline")]).stdout, pattern(60));
    }

    for size in [u64::MAX, i64::MAX as u64, 1 << 40] {
        let mut absurd = manifest.clone();
        claim_size(&mut absurd, "/first/file", size);
        install(&lazyroot, "absurd", &absurd);
        assert!(lazyroot.ok(["store", "ls", "absurd:/first"]).contains(&format!(" {size} ")));
        lazyroot.ok(["store", "du", "absurd"]);
        lazyroot.ok(["image", "ls"]);
        assert!(lazyroot.error(["store", "cat", "absurd:/first/file"]).contains("is not in the store"));
        let mut absurd = manifest.clone();
        claim_size(&mut absurd, "/first/inline", size);
        install(&lazyroot, "absurd", &absurd);
        let error = lazyroot.error(["store", "cat", "absurd:/first/inline"]);
        assert!(error.contains("damaged"), "{error}");
        for folder in ["/first", "/first/second"] {
            let mut absurd = manifest.clone();
            claim_size(&mut absurd, folder, size);
            install(&lazyroot, "absurd", &absurd);
            let error = lazyroot.error(["store", "find", "absurd"]);
            assert!(error.contains("damaged"), "{folder}: {error}");
        }
    }
}

#[test]
fn ten_thousand_folders_in_each_other_are_one_clear_error() {
    let manifest = std::thread::Builder::new().stack_size(1 << 30).spawn(|| {
        let mut fs = FileSystem::<Sha256HashValue>::new(stat());
        let mut inner = Directory::new(stat());
        for _ in 0..10_000 {
            let mut outer = Directory::new(stat());
            outer.insert(OsStr::new("deep"), Inode::Directory(Box::new(inner)));
            inner = outer;
        }
        fs.root = inner;
        mkfs_erofs(&ValidatedFileSystem::new(fs).unwrap()).to_vec()
    });
    let manifest = manifest.unwrap().join().unwrap();
    let lazyroot = Lazyroot::default();
    install(&lazyroot, "deep", &manifest);
    for command in ["find", "tree", "du"] {
        let error = lazyroot.error(["store", command, "deep"]);
        assert!(error.contains("4095 bytes") && error.contains("/deep/deep") && error.len() < 500, "{error}");
    }
    // The first levels can be looked at.
    assert!(lazyroot.ok(["store", "ls", "deep:/deep/deep"]).ends_with(" deep\n"));
    assert!(lazyroot.error(["image", "inspect", "deep"]).contains("4095 bytes"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a manifest is made of, looking at it ends, without a panic.
    #[test]
    fn any_manifest_is_read_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        static MANIFEST: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let sound = MANIFEST.get_or_init(small_manifest);
        // The first kilobyte is left to boot loaders, and most of the rest is zeros: change what says something.
        let meaning: Vec<usize> = (1024..sound.len()).filter(|at| sound[at.saturating_sub(4)..].iter().take(9).any(|b| *b != 0)).collect();
        let mut manifest = sound.clone();
        for (index, value) in changes {
            manifest[meaning[index.index(meaning.len())]] = value;
        }
        let id = verity::digest(Algorithm::Sha256, &manifest);
        if let Ok(tree) = Tree::new(&id, manifest) {
            let _ = tree.objects();
            let _ = tree.census();
            let _ = tree.lookup("/first/second/third");
            if let Ok(listing) = tree.listing("/", None) {
                for folder in &listing.folders {
                    for name in &folder.names {
                        if let Ok(entry) = tree.listed(folder, name) {
                            let _ = tree.target(&entry);
                            let _ = tree.attributes(&entry);
                            let _ = tree.node_of(&entry);
                        }
                    }
                }
            }
        }
    }
}
