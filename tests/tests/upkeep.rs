//! Promises about a store that is kept in order: garbage, damage, memory of what was imported, full disks.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lazyroot::store::Store;
use lazyroot_proto::ObjectId;
use lazyroot_tests::awkward::{awkward_tree, pattern};
use lazyroot_tests::data::{numbered, tree_of};
use lazyroot_tests::inputs::need_root;
use lazyroot_tests::lazyroot::{Lazyroot, give_environment};
use lazyroot_tests::rootfs;
use lazyroot_tests::stores::{assert_sound, files, id_of, object_file, repository};
use lazyroot_tests::wait::until;
use serde_json::Value;
use tempfile::TempDir;

fn gc(lazyroot: &Lazyroot, options: &[&str]) -> Value {
    let arguments = ["store", "gc", "--format", "json"];
    serde_json::from_str(&lazyroot.ok(arguments.iter().chain(options))).unwrap()
}

#[test]
fn garbage_goes_and_what_is_named_stays() {
    let (lazyroot, one, two) = (Lazyroot::default(), tree_of(0..20), tree_of(10..30));
    lazyroot.import(one.path(), "one");
    lazyroot.import(two.path(), "two");
    let kept = files(&repository(&lazyroot).join("objects"));
    assert_eq!(gc(&lazyroot, &[])["objects"], 0);
    assert_eq!(files(&repository(&lazyroot).join("objects")), kept);
    let foreign = repository(&lazyroot).join("objects/00");
    fs::create_dir_all(&foreign).unwrap();
    let foreign = foreign.join("README");
    fs::write(&foreign, "not yours").unwrap();
    let one_id = id_of(&lazyroot, "one");
    lazyroot.ok(["image", "rm", "one"]);
    let dry = gc(&lazyroot, &["--dry-run"]);
    // Its own ten objects and its manifest.
    assert_eq!(dry["objects"], 11);
    assert!(dry["freed_bytes"].as_u64().unwrap() > 10 * 5000);
    assert_eq!(dry["foreign"], serde_json::json!([foreign]));
    assert_eq!(files(&repository(&lazyroot).join("objects")).len(), kept.len() + 1);
    assert_eq!(gc(&lazyroot, &[]), dry);
    assert!(foreign.exists());
    assert_eq!(files(&repository(&lazyroot).join("objects")).len(), kept.len() - 10);
    assert_sound(&lazyroot);
    assert!(lazyroot.error(["image", "inspect", &one_id]).contains("no image"));
    lazyroot.ok(["image", "rm", "two"]);
    gc(&lazyroot, &[]);
    fs::remove_file(foreign).unwrap();
    assert_eq!(files(&repository(&lazyroot).join("objects")), []);
    for folder in ["index", "facts", "refs", "checked"] {
        assert_eq!(files(&repository(&lazyroot).join("lazyroot").join(folder)), [], "{folder}");
    }
    // What was there once comes back whole.
    lazyroot.import(one.path(), "one");
    assert_sound(&lazyroot);
}

#[test]
fn what_is_in_use_is_neither_removed_nor_collected() {
    let (lazyroot, one, two) = (Lazyroot::default(), tree_of(0..20), tree_of(100..120));
    lazyroot.import(one.path(), "one");
    lazyroot.import(two.path(), "two");
    let id = id_of(&lazyroot, "one");
    let mount = lazyroot.mount("one", &[]);
    let error = lazyroot.error(["image", "rm", "one"]);
    assert!(error.contains("in use by the mount at") && error.contains("1 of 1"), "{error}");
    // One of several names may go.
    lazyroot.ok(["image", "tag", "one", "other"]);
    lazyroot.ok(["image", "rm", "other"]);
    // Another tool, or an import under the same name, may take the name away.
    lazyroot.import(two.path(), "one");
    let collected = gc(&lazyroot, &[]);
    assert_eq!(collected["images"], serde_json::json!([]));
    assert!(collected["in_use"][&id][0].as_str().unwrap().starts_with("the mount at "), "{collected}");
    for number in 0..20 {
        assert_eq!(fs::read(mount.path().join(number.to_string())).unwrap(), numbered(number, 5000));
    }
    drop(mount);
    // The mount's process ends by itself.
    until("the pin of the mount ends", || gc(&lazyroot, &[])["images"] == serde_json::json!([id]));
    assert_sound(&lazyroot);
}

#[test]
fn a_pin_dies_with_its_process() {
    let (lazyroot, one) = (Lazyroot::default(), tree_of(0..5));
    lazyroot.import(one.path(), "one");
    let socket = lazyroot.home().join("s");
    let mut child = lazyroot.command(["serve", "--listen", &format!("unix:{}", socket.display()), "one"]);
    let mut child = child.stdout(Stdio::null()).spawn().unwrap();
    until("the server listens", || socket.exists());
    assert!(lazyroot.error(["image", "rm", "one"]).contains("in use by a server"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(files(&repository(&lazyroot).join("lazyroot/pins")).len(), 1, "nobody removed it");
    lazyroot.ok(["image", "rm", "one"]);
    assert_eq!(gc(&lazyroot, &[])["objects"], 6);
    assert_eq!(files(&repository(&lazyroot).join("lazyroot/pins")), []);
}

#[test]
fn a_collection_holds_up_no_reader() {
    let (lazyroot, one) = (Lazyroot::default(), tree_of(0..5));
    lazyroot.import(one.path(), "one");
    // As a collection, or any composefs program, holds it.
    let lock = File::open(repository(&lazyroot)).unwrap();
    lock.lock().unwrap();
    let mount = lazyroot.mount("one", &[]);
    assert_eq!(fs::read(mount.path().join("3")).unwrap(), numbered(3, 5000));
    lazyroot.ok(["store", "ls", "one"]);
    lazyroot.ok(["store", "verify"]);
}

#[test]
fn damage_is_found_named_and_mended() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    lazyroot.ok(["image", "tag", "a", "b"]);
    assert_sound(&lazyroot);
    let (page, large) = (object_file(&lazyroot, &pattern(4096)), object_file(&lazyroot, &pattern(3_000_001)));
    let missing = object_file(&lazyroot, &pattern(65));
    // A byte of each, so that sizes stay; and one that is gone.
    for file in [&page, &large] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        File::options().write(true).open(file).unwrap().write_all_at(b"!", 1000).unwrap();
    }
    fs::remove_file(&missing).unwrap();
    let output = lazyroot.run(["store", "verify"]);
    assert_eq!(output.status.code(), Some(125));
    let (said, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(errors.contains("3 objects are damaged") && errors.contains("--repair"), "{errors}");
    for words in ["a:latest:/page\n", "a:latest:/deep/large-too\n", "a:latest:/smallest-object\n", "it is missing"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let json = lazyroot.run(["store", "verify", "a", "--format", "json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["damaged"].as_array().unwrap().len(), 3);
    // The source has changed in one of them: that one stays as it is, and said.
    let name = source.path().join("smallest-object");
    let (content, meta) = (fs::read(&name).unwrap(), fs::metadata(&name).unwrap());
    fs::write(&name, "other").unwrap();
    let output = lazyroot.run(["store", "verify", "--repair"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("has changed since it was imported"), "{errors}");
    assert!(errors.contains("1 objects are damaged"), "{errors}");
    fs::write(&name, content).unwrap();
    File::options().write(true).open(&name).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    let said = lazyroot.ok(["store", "verify", "--repair"]);
    assert!(said.contains("repaired"), "{said}");
    assert_sound(&lazyroot);
    // The manifest too.
    let id: ObjectId = id_of(&lazyroot, "a").parse().unwrap();
    let manifest = repository(&lazyroot).join("objects").join(id.object_path());
    let len = fs::metadata(&manifest).unwrap().len();
    fs::write(&manifest, vec![0; len as usize]).unwrap();
    assert!(String::from_utf8(lazyroot.run(["store", "verify"]).stdout).unwrap().contains("a:latest: the manifest"));
    lazyroot.ok(["store", "verify", "--repair"]);
    assert_sound(&lazyroot);
    assert_eq!(files(&repository(&lazyroot).join("lazyroot/tmp")), []);
}

#[test]
fn an_import_mends_an_object_of_the_same_size() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    let page = object_file(&lazyroot, &pattern(4096));
    let damage = || fs::write(&page, vec![7; 4096]).unwrap();
    damage();
    lazyroot.import(source.path(), "a");
    assert_eq!(fs::read(&page).unwrap(), pattern(4096));
    // In another image's import, which has never seen the object.
    damage();
    let other = TempDir::with_prefix("lr").unwrap();
    fs::write(other.path().join("file"), pattern(4096)).unwrap();
    lazyroot.import(other.path(), "b");
    assert_eq!(fs::read(&page).unwrap(), pattern(4096));
    assert_sound(&lazyroot);
}

/// Imports a folder; how many bytes the process read, by the kernel's count (`rchar` of proc_pid_io(5)).
fn bytes_read_by_import(lazyroot: &Lazyroot, dir: &Path, options: &[&str]) -> u64 {
    let source = format!("dir:{}", dir.display());
    let import = lazyroot.command(["image", "import", &source, "--name", "a"].iter().chain(options));
    // A process's count takes in those of the children it has waited for.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "\"$@\" >/dev/null && exec cat /proc/self/io", "sh"]);
    shell.arg(import.get_program()).args(import.get_args());
    give_environment(&mut shell, &import);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn an_unchanged_file_is_not_read_again_and_a_changed_one_is() {
    let (lazyroot, source) = (Lazyroot::default(), content_tree(20, 1_000_000));
    let all = 20_000_000;
    // A file is remembered once it is two seconds old.
    std::thread::sleep(Duration::from_millis(3100));
    assert!(bytes_read_by_import(&lazyroot, source.path(), &[]) > all);
    let first = id_of(&lazyroot, "a");
    assert!(bytes_read_by_import(&lazyroot, source.path(), &[]) < all / 10);
    assert_eq!(id_of(&lazyroot, "a"), first);
    // A change that keeps size and mtime is noticed by its ctime.
    let name = source.path().join("4");
    let modified = fs::metadata(&name).unwrap().modified().unwrap();
    fs::write(&name, numbered(44, 1_000_000)).unwrap();
    File::options().write(true).open(&name).unwrap().set_modified(modified).unwrap();
    assert!(bytes_read_by_import(&lazyroot, source.path(), &[]) < all / 5);
    assert_ne!(id_of(&lazyroot, "a"), first);
    assert_eq!(lazyroot.run(["store", "cat", "a:/4"]).stdout, numbered(44, 1_000_000));
    // All of it, if asked to: the folder's files and the store's objects.
    assert!(bytes_read_by_import(&lazyroot, source.path(), &["--rehash"]) > 2 * all);
    // An object that was collected meanwhile is read again.
    lazyroot.ok(["image", "rm", "a"]);
    gc(&lazyroot, &[]);
    assert!(bytes_read_by_import(&lazyroot, source.path(), &[]) > all);
    assert_sound(&lazyroot);
}

#[test]
fn a_store_that_cannot_be_written_says_so_and_is_read() {
    let (lazyroot, source) = (Lazyroot::default(), tree_of(0..5));
    lazyroot.import(source.path(), "a");
    lazyroot.ok(["image", "ls"]);
    let repository = repository(&lazyroot);
    let path = repository.to_str().unwrap();
    need_root();
    let mount = |options: &[&str]| {
        let status = std::process::Command::new("mount").args(options).arg(path).status().unwrap();
        assert!(status.success());
    };
    mount(&["--bind", path]);
    mount(&["-o", "remount,bind,ro"]);
    let refused = |arguments: &[&str]| {
        let error = lazyroot.error(arguments);
        assert!(error.to_lowercase().contains("read-only file system"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    let dir = format!("dir:{}", source.path().display());
    refused(&["image", "import", &dir, "--name", "b"]);
    refused(&["image", "tag", "a", "b"]);
    refused(&["store", "gc"]);
    lazyroot.ok(["store", "ls", "a"]);
    lazyroot.ok(["store", "verify"]);
    lazyroot.ok(["store", "gc", "--dry-run"]);
    {
        let mounted = lazyroot.mount("a", &[]);
        assert_eq!(fs::read(mounted.path().join("1")).unwrap(), numbered(1, 5000));
    }
    let status = std::process::Command::new("umount").args(["--lazy", path]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_store_of_a_newer_version_is_refused_or_only_read() {
    let (lazyroot, source) = (Lazyroot::default(), tree_of(0..5));
    lazyroot.import(source.path(), "a");
    let meta = repository(&lazyroot).join("meta.json");
    let text = fs::read_to_string(&meta).unwrap();
    let with = |kind: &str| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json["features"][kind] = serde_json::json!(["time-travel"]);
        fs::write(&meta, json.to_string()).unwrap();
    };
    with("incompatible");
    let error = lazyroot.error(["image", "ls"]);
    assert!(error.contains("newer") && error.contains("time-travel"), "{error}");
    with("read-only-compatible");
    lazyroot.ok(["store", "ls", "a"]);
    let dir = format!("dir:{}", source.path().display());
    for arguments in
        [&["image", "import", &dir][..], &["image", "tag", "a", "b"], &["image", "rm", "a"], &["store", "gc"]]
    {
        let error = lazyroot.error(arguments);
        assert!(error.contains("can be read but not changed") && error.contains("time-travel"), "{error}");
    }
    with("compatible");
    lazyroot.ok(["image", "tag", "a", "b"]);
    // The other hash is a store too; a third is not.
    fs::write(&meta, text.replace("fsverity-sha256-12", "fsverity-blake3-12")).unwrap();
    assert!(lazyroot.error(["image", "ls"]).contains("'fsverity-blake3-12', which lazyroot does not know"));
}

#[test]
fn the_image_of_a_running_vm_stays() {
    let (lazyroot, other) = (Lazyroot::default(), tree_of(0..3));
    lazyroot.import(&rootfs(), "debian");
    lazyroot.import_kernel();
    let id = id_of(&lazyroot, "debian");
    lazyroot.ok(["run", "-d", "--hypervisor", "qemu:tcg", "--name", "vm", "debian", "--", "sleep", "1000"]);
    let error = lazyroot.error(["image", "rm", "debian"]);
    assert!(error.contains("in use by"), "{error}");
    // Its name is taken away by another import.
    lazyroot.import(other.path(), "debian");
    let collected = gc(&lazyroot, &[]);
    assert_eq!(collected["images"], serde_json::json!([]));
    assert!(collected["in_use"][&id][0].is_string(), "{collected}");
    // Nothing of this was read before.
    let file = "usr/bin/perl";
    let said = lazyroot.ok(["exec", "vm", "sha256sum", &format!("/{file}")]);
    let here = std::process::Command::new("sha256sum").arg(rootfs().join(file)).output().unwrap();
    assert_eq!(said.split(' ').next(), String::from_utf8(here.stdout).unwrap().split(' ').next());
    lazyroot.ok(["rm", "--force", "vm"]);
    until("the pin of the VM ends", || gc(&lazyroot, &[])["images"] == serde_json::json!([id]));
}

#[test]
fn a_disk_that_fills_up_during_an_import_is_one_clear_error() {
    let (lazyroot, disk, source) = (Lazyroot::default(), TempDir::with_prefix("lr").unwrap(), tree_of(0..10));
    need_root();
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // A file system that fills up with names as well as with data.
    let mountpoint = disk.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=4m,nr_inodes=1200", "tmpfs", mountpoint.to_str().unwrap()]);
    let store = mountpoint.join("store");
    let store_text = store.to_str().unwrap();
    let import = |dir: &Path, name: &str| {
        lazyroot.run(["--store", store_text, "image", "import", &format!("dir:{}", dir.display()), "--name", name])
    };
    let output = import(source.path(), "small");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, large) in [("bytes", content_tree(20, 500_000)), ("names", content_tree(1500, 100))] {
        let output = import(large.path(), name);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(error.contains("is full") && error.lines().count() == 1, "{error}");
        lazyroot.ok(["--store", store_text, "store", "verify", "small"]);
        let said = lazyroot.ok(["--store", store_text, "store", "gc"]);
        assert!(said.contains("freed"), "{said}");
    }
    let output = import(source.path(), "again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let there = Store::at(&store).unwrap();
    assert_eq!(there.images().unwrap()[0].names, ["again:latest", "small:latest"]);
    drop(there);
    run("umount", &["--lazy", mountpoint.to_str().unwrap()]);
}

fn content_tree(count: u32, len: usize) -> TempDir {
    let dir = TempDir::with_prefix("lr").unwrap();
    for number in 0..count {
        fs::write(dir.path().join(number.to_string()), numbered(1_000_000 + number, len)).unwrap();
    }
    dir
}
