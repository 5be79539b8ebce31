//! Promises about the store: its images and their names, what it says of them, and what is damaged in it.
//!
//! Device nodes and mounts need root.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use composefs::fsverity::Sha256HashValue;
use composefs::repository::Repository;
use lazyroot::store::{Content, Node};
use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::awkward::{awkward_tree, pattern, set_mtime};
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::mounts::Mounted;
use lazyroot_tests::oci::*;
use lazyroot_tests::stores::{files, import, inspect, store};
use lazyroot_tests::tree;
use lazyroot_tests::wait::{until, until_some};
use lazyroot_tests::{run_program, temporary};
use rustix::fs::CWD;
use serde_json::{Value, json};

#[test]
fn an_image_is_looked_into_without_mounting_it() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    import(&lazyroot, &format!("dir:{}", source.path().display()));
    let store = store(&lazyroot);
    let images = store.images().unwrap();
    let image = store.resolve(&images[0].names[0]).unwrap();
    let tree = image.tree().unwrap();
    // Followed inside the image, whatever is on this machine.
    for path in ["/deep/er/still/page-again", "absolute/still/../still/page-again", "../../deep/relative"] {
        assert_eq!(image.read_file(store.source().as_ref(), path).unwrap(), pattern(4096), "{path}");
    }
    for path in ["/dangling", "/page/x", "/no", "/absolute/no", "/00"] {
        assert_eq!(tree.lookup(path).unwrap(), None, "{path}");
    }
    assert!(tree.lookup("/circle").unwrap_err().to_string().contains("too many symbolic links"));
    assert_eq!(tree.lookup("/").unwrap(), Some(Node::Directory));
    assert_eq!(tree.lookup("/fifo").unwrap(), Some(Node::Special));
    let inline = Node::File { size: 64, content: Content::Inline(pattern(64)) };
    assert_eq!(tree.lookup("/deep/inline-too").unwrap(), Some(inline));
    let object = verity::digest(Algorithm::Sha256, &pattern(65));
    let node = Node::File { size: 65, content: Content::Object(object) };
    assert_eq!(tree.lookup("/smallest-object").unwrap(), Some(node));
    let list = tree.list("/").unwrap().unwrap();
    let mut expected: Vec<_> = fs::read_dir(source.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    expected.sort();
    assert_eq!(list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected);
    let target = Node::Symlink { target: "/deep/er".into() };
    assert!(list.contains(&("absolute".into(), target)));
    assert_eq!(tree.list("/page").unwrap(), None);
    // Manifest order: a walk in name order, each object where it is met first.
    let order = ["large", "page", "smallest-object", "sparse"].map(|name| fs::read(source.path().join(name)).unwrap());
    let index = image.index.load().unwrap();
    let order = order.map(|data| index.position(&verity::digest(Algorithm::Sha256, &data)).unwrap());
    let page_first_met_in_deep = order[1] < order[0];
    assert!(page_first_met_in_deep && order[0] < order[2] && order[2] < order[3], "{order:?}");
    let mut objects = HashSet::new();
    assert!(index.entries().iter().all(|(id, size)| *size > 64 && objects.insert(*id)));
    assert_eq!(objects.len(), files(&store.path().join("objects")).len() - 1, "all but the manifest");
}

#[test]
fn a_damaged_index_is_noticed_and_made_again() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    let (id, name) = import(&lazyroot, &format!("dir:{}", source.path().display()));
    let store = store(&lazyroot);
    let before = store.resolve(&name).unwrap().index;
    let file = |kind: &str| store.path().join("lazyroot").join(kind).join(id.strip_prefix("sha256:").unwrap());
    let (index, facts) = (file("index"), file("facts"));
    let (bytes, record) = (fs::read(&index).unwrap(), fs::read(&facts).unwrap());
    let loaded = before.load().unwrap();
    let mut flipped = bytes.clone();
    // The lowest byte of the last object's size: still an index, of another image.
    let last = flipped.len() - 8;
    flipped[last] ^= 1;
    for damaged in [&bytes[..bytes.len() - 1], &flipped, b""] {
        fs::write(&index, damaged).unwrap();
        assert_eq!(store.resolve(&name).unwrap().index.load().unwrap(), loaded);
        assert_eq!(fs::read(&index).unwrap(), bytes);
    }
    let lying = String::from_utf8(record.clone()).unwrap().replace("\"objects\":", "\"objects\":1");
    for damaged in [&record[..record.len() - 1], lying.as_bytes(), b""] {
        fs::write(&facts, damaged).unwrap();
        let again = store.resolve(&name).unwrap().index;
        assert_eq!((again.id(), again.objects()), (before.id(), before.objects()));
        assert_eq!(fs::read(&facts).unwrap(), record);
    }
    // A store that was made before there were such records.
    fs::remove_file(&facts).unwrap();
    fs::remove_file(&index).unwrap();
    assert_eq!(store.resolve(&name).unwrap().index.load().unwrap(), loaded);
    assert_eq!((fs::read(&index).unwrap(), fs::read(&facts).unwrap()), (bytes, record));
}

#[test]
fn an_image_tells_how_it_was_built() {
    let (lazyroot, layout, source) = (Lazyroot::default(), two_layer_image(), awkward_tree());
    import(&lazyroot, &layout.source("v1"));
    let name = import(&lazyroot, &layout.source("v1")).1;
    let text = lazyroot.ok(["image", "history", &name]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[1], "2025-08-10T00:00:00Z  -      ENV A=b");
    assert_eq!(lines[2], "2025-08-09T00:00:00Z  yes    ADD below  # the \\x1b[31mfirst");
    let json: Value = serde_json::from_str(&lazyroot.ok(["image", "history", &name, "--format", "json"])).unwrap();
    assert_eq!((&json[0]["empty_layer"], &json[1]["created_by"]), (&json!(true), &json!("ADD below")));
    lazyroot.import(source.path(), "folder");
    assert!(lazyroot.error(["image", "history", "folder"]).contains("came from a folder"));
}

#[test]
fn images_are_compared_file_by_file() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    let at = |name: &str| source.path().join(name);
    fs::write(at("added\n"), content("added")).unwrap();
    fs::remove_file(at("deep/relative")).unwrap();
    fs::write(at("large"), content("less")).unwrap();
    fs::set_permissions(at("one"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(at("absolute")).unwrap();
    fs::create_dir(at("absolute")).unwrap();
    rustix::fs::lsetxattr(at("fifo"), "trusted.note", b"new", rustix::fs::XattrFlags::empty()).unwrap();
    lazyroot.import(source.path(), "b");
    let text = lazyroot.ok(["image", "diff", "a", "b"]);
    let has = |words: &str| assert!(text.contains(words), "{words}: {text}");
    for words in [
        "+            -        10000  /added\\n\n",
        "-            7            -  /deep/relative\n",
        "~      3000001        10000  /deep/large-too  (content",
        "/one  (mode)\n",
        "/fifo  (attributes)\n",
        "/absolute  (type",
        "1 added (9.77 KiB), 1 removed (7 B), ",
        "fetches at most 19.53 KiB in 2 objects",
    ] {
        has(words);
    }
    let json: Value = serde_json::from_str(&lazyroot.ok(["image", "diff", "a", "b", "--format", "json"])).unwrap();
    assert_eq!(json["changes"].as_array().unwrap().len(), text.lines().count() - 2);
    assert_eq!(json["fetch"]["new_bytes"], 20_000);
    let same: Value = serde_json::from_str(&lazyroot.ok(["image", "diff", "b", "b", "--format", "json"])).unwrap();
    assert_eq!(same["changes"], json!([]));
    assert_eq!(same["fetch"]["new_objects"], 0);
    // Times alone are shown when asked for.
    set_mtime(&at("page"), 77, 0);
    lazyroot.import(source.path(), "c");
    assert!(!lazyroot.ok(["image", "diff", "b", "c"]).contains("/page"));
    assert!(lazyroot.ok(["image", "diff", "--times", "b", "c"]).contains("/page  (time)\n"));
}

#[test]
fn a_store_adds_up() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    lazyroot.import(source.path(), "a");
    fs::write(source.path().join("more"), content("more")).unwrap();
    lazyroot.import(source.path(), "b");
    lazyroot.ok(["image", "tag", "b", "c"]);
    let stats = || -> Value { serde_json::from_str(&lazyroot.ok(["store", "stats", "--format", "json"])).unwrap() };
    let (one, two, now) = (inspect(&lazyroot, "a"), inspect(&lazyroot, "b"), stats());
    let bytes = |image: &Value| image["object_bytes"].as_u64().unwrap();
    assert_eq!((&now["images"], &now["names"]), (&json!(2), &json!(3)));
    assert_eq!(now["image_bytes"], bytes(&one) + bytes(&two));
    assert_eq!(now["distinct_bytes"], bytes(&two));
    assert_eq!(now["shared_objects"], one["objects"]);
    assert_eq!(now["unreferenced_bytes"], 0);
    lazyroot.ok(["image", "rm", "b", "c"]);
    assert_eq!(stats()["unreferenced_bytes"], 10_000 + two["manifest_bytes"].as_u64().unwrap());
    assert!(lazyroot.ok(["store", "stats"]).contains("deduplication         1.00\n"));
}

#[test]
fn stats_name_what_is_read_now_and_most() {
    let (lazyroot, source) = (Lazyroot::default(), temporary());
    for name in ["cold", "hot", "warm"] {
        fs::write(source.path().join(name), name.repeat(100)).unwrap();
    }
    lazyroot.import(source.path(), "a");
    let read = |mount: &lazyroot_tests::lazyroot::Mount, name: &str| fs::read(mount.path().join(name)).unwrap();
    read(&lazyroot.mount("a", &[]), "hot");
    // With a profile it would be put where a read of it is not seen.
    let profiles = lazyroot.home().join("repository/lazyroot/profiles");
    until("a profile is written", || {
        fs::remove_file(profiles.join(store(&lazyroot).resolve("a").unwrap().id.to_hex())).is_ok()
    });
    let mount = lazyroot.mount("a", &[]);
    read(&mount, "warm");
    read(&mount, "hot");
    // A guest tells now and then what it has read.
    let stats = until_some("both reads are told", || {
        let stats: Value = serde_json::from_str(&lazyroot.ok(["store", "stats", "--format", "json"])).unwrap();
        let is_told = stats["hottest"][0]["runs"] == 2 && stats["reading"][0]["files"].as_array().unwrap().len() == 2;
        is_told.then_some(stats)
    });
    assert_eq!((&stats["hottest"][0]["file"], &stats["hottest"][0]["size"]), (&json!("/hot"), &json!(300)));
    assert_eq!(stats["hottest"][1]["file"], "/warm");
    assert_eq!(stats["reading"][0]["files"], json!(["/hot", "/warm"]));
    assert_eq!(stats["reading"][0]["name"], mount.path().to_str().unwrap());
    let text = lazyroot.ok(["store", "stats"]);
    assert!(text.contains("/hot (300 B)") && text.contains("; last /hot, /warm\n"), "{text}");
}

#[test]
fn the_doctor_looks_at_everything_and_says_what_to_do() {
    let lazyroot = Lazyroot::default();
    let output = lazyroot.command(["doctor", "--format", "json"]).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "no QEMU there");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let finding = |name: &str| findings.iter().find(|finding| finding["name"] == name).unwrap().clone();
    assert_eq!(finding("hypervisor")["health"], "bad");
    assert!(finding("hypervisor")["mend"].as_str().unwrap().contains("apt-get install qemu-system"));
    assert!(finding("registries")["mend"].as_str().unwrap().contains("apt-get install skopeo"));
    assert_eq!(finding("store")["health"], "good");
    for finding in &findings {
        assert_eq!(finding["health"] != "good", finding["mend"].is_string(), "{finding}");
    }
    // The machine of these tests can run VMs.
    let text = lazyroot.ok(["doctor"]);
    for name in
        ["home", "store", "disk", "kernel", "hypervisor", "kvm", "vsock", "guest-init", "kernels", "fuse", "podman"]
    {
        assert!(text.lines().any(|line| line.split_whitespace().nth(1) == Some(name)), "{name}: {text}");
    }
}

#[test]
fn shells_and_man_know_the_command_line() {
    let (lazyroot, dir) = (Lazyroot::default(), temporary());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(lazyroot.ok(["completions", shell]).contains("rehash"), "{shell}");
    }
    let script = dir.path().join("script");
    fs::write(&script, lazyroot.ok(["completions", "bash"])).unwrap();
    run_program("bash", "bash", &["-n", script.to_str().unwrap()]);
    let pages = dir.path().join("man");
    lazyroot.ok(["man", pages.to_str().unwrap()]);
    let page = |name: &str| fs::read_to_string(pages.join(name)).unwrap();
    assert!(page("lazyroot.1").contains(".TH lazyroot 1"));
    assert!(page("lazyroot-store-verify.1").contains("repair"));
}

#[test]
fn names_come_go_and_move() {
    let (lazyroot, layout, source) = (Lazyroot::default(), two_layer_image(), awkward_tree());
    let dir = format!("dir:{}", source.path().display());
    lazyroot.ok(["image", "import", &dir, "--name", "a"]);
    lazyroot.ok(["image", "tag", "a", "a/b:x"]);
    lazyroot.ok(["image", "import", &layout.source("v1"), "--name", "localhost:5000/os"]);
    let list = lazyroot.ok(["image", "ls"]);
    let names: Vec<_> = list.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["a/b:x", "a:latest", "localhost:5000/os:latest"]);
    let json: Value = serde_json::from_str(&lazyroot.ok(["image", "ls", "--format", "json"])).unwrap();
    let id = json[0]["id"].as_str().unwrap();
    for found_by in ["a", "a:latest", "a/b:x", id, &id[7..], &id[7..19], &id[..19]] {
        assert_eq!(inspect(&lazyroot, found_by)["id"], id, "{found_by}");
    }
    for unknown in ["b", "a:x", "a/b", &id[7..18], "localhost", "../a"] {
        let error = lazyroot.error(["image", "inspect", unknown]);
        assert!(error.contains("a:latest") && error.contains("lazyroot image import"), "{error}");
    }
    assert!(lazyroot.error(["image", "tag", "a", "../x"]).contains("no image name"));
    assert_eq!(lazyroot.ok(["image", "rm", "a"]), "untagged a; still a/b:x\n");
    assert_eq!(lazyroot.ok(["image", "rm", "a/b:x"]), "removed a/b:x\n");
    assert!(lazyroot.error(["image", "inspect", id]).contains("no image"));
    // A name moves to another image.
    lazyroot.ok(["image", "import", &dir, "--name", "localhost:5000/os"]);
    assert_eq!(inspect(&lazyroot, "localhost:5000/os")["id"], id);
    assert_eq!(inspect(&lazyroot, "localhost:5000/os")["config"], Value::Null);
    // Nothing of what was removed is left to composefs' garbage collection to keep.
    lazyroot.ok(["image", "rm", "localhost:5000/os"]);
    let repository = lazyroot.home().join("repository");
    Repository::<Sha256HashValue>::open_path(CWD, &repository).unwrap().gc(&[]).unwrap();
    assert_eq!(files(&repository.join("objects")), []);
}

#[test]
fn garbage_collection_keeps_what_has_a_name() {
    let (lazyroot, layout, source) = (Lazyroot::default(), two_layer_image(), awkward_tree());
    let (dir_id, _) = import(&lazyroot, &format!("dir:{}", source.path().display()));
    let (oci_id, _) = import(&lazyroot, &layout.source("v1"));
    let repository = lazyroot.home().join("repository");
    Repository::<Sha256HashValue>::open_path(CWD, &repository).unwrap().gc(&[]).unwrap();
    tree::assert_same(source.path(), Mounted::new(&repository, &dir_id).path());
    assert_two_layers(&lazyroot, &oci_id);
}
