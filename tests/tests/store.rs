//! Promises about the store, kept with real sources: folders, OCI layouts, podman's storage, a registry.
//!
//! Device nodes, mounts and podman's storage need root; `make test` sees to it.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use composefs::fsverity::Sha256HashValue;
use composefs::mount::MountOptions;
use composefs::repository::Repository;
use lazyroot::store::{Content, Node, Object, Progress, Source, Store};
use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::awkward::{awkward_tree, pattern, set_mtime};
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::tree;
use rustix::fs::CWD;
use serde_json::{Value, json};
use tempfile::TempDir;

fn temporary() -> TempDir {
    TempDir::with_prefix("lr").unwrap()
}

/// Runs a program that must succeed.
fn sh(program: &str, package: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: apt-get install {package}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn store(lazyroot: &Lazyroot) -> Store {
    Store::at(lazyroot.home().join("repository")).unwrap()
}

/// The digest and the name that `lazyroot image import` printed.
fn import(lazyroot: &Lazyroot, source: &str) -> (String, String) {
    let line = lazyroot.ok(["image", "import", source]);
    let (id, name) = line.trim_end().split_once(' ').unwrap();
    (id.to_owned(), name.to_owned())
}

fn inspect(lazyroot: &Lazyroot, image: &str) -> Value {
    serde_json::from_str(&lazyroot.ok(["image", "inspect", image])).unwrap()
}

/// An image mounted by the kernel from the objects on this disk: what composefs itself would show.
struct Mounted(TempDir);

impl Mounted {
    fn new(repository: &Path, id: &str) -> Self {
        let dir = temporary();
        let repository = Repository::<Sha256HashValue>::open_path(CWD, repository).unwrap();
        // By digest: by name, composefs demands fs-verity of the file system.
        let id = id.strip_prefix("sha256:").unwrap();
        repository.mount_at(id, dir.path(), &MountOptions::default()).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Files below `dir`, by path.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Fails if anything in the repository is not an object, an image, a stream or what lazyroot says it keeps.
fn assert_no_leftovers(repository: &Path) {
    for file in files(&repository.join("objects")) {
        let name = file.strip_prefix(repository.join("objects")).unwrap().to_str().unwrap();
        let is_object = name.len() == 65 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'/');
        assert!(is_object, "{} is no object", file.display());
    }
    let temporary = repository.join("lazyroot/tmp");
    if temporary.exists() {
        assert_eq!(files(&temporary), Vec::<PathBuf>::new());
    }
}

/// An OCI image layout made by hand; layers come from tar.
struct Layout(TempDir);

impl Layout {
    /// One tag for each configuration, all with the same layers.
    fn new(layers: &[Vec<u8>], tags: &[(&str, Value)]) -> Self {
        let dir = temporary();
        let layout = Self(dir);
        fs::create_dir_all(layout.0.path().join("blobs/sha256")).unwrap();
        fs::write(layout.0.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layers: Vec<_> = layers.iter().map(|l| layout.blob("application/vnd.oci.image.layer.v1.tar", l)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        let mut manifests = Vec::new();
        for (tag, run) in tags {
            let config = json!({
                "architecture": "amd64", "os": "linux", "config": run,
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [
                { "created": "2025-08-09T00:00:00Z", "created_by": "ADD below", "comment": "the \u{1b}[31mfirst" },
                { "created": "2025-08-10T00:00:00Z", "created_by": "ENV A=b", "empty_layer": true },
            ],
            });
            let config = layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
            let manifest = "application/vnd.oci.image.manifest.v1+json";
            let document = json!({ "schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers });
            let mut manifest = layout.blob(manifest, document.to_string().as_bytes());
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            manifests.push(manifest);
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(layout.0.path().join("index.json"), index.to_string()).unwrap();
        layout
    }

    fn blob(&self, media_type: &str, data: &[u8]) -> Value {
        let digest = ring::digest::digest(&ring::digest::SHA256, data);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(self.0.path().join("blobs/sha256").join(&hex), data).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": data.len() })
    }

    fn source(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0.path().display())
    }
}

/// Files whose content is their name, long enough to be objects.
fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(10_000).collect()
}

/// In name order, so that whiteouts come before what they do not hide, as builders of images write them.
fn tar(dir: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(["--sort=name", "-C", dir.to_str().unwrap(), "-c", "."]).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Two layers: the second deletes a file of the first, hides a folder's content and replaces a file.
fn two_layers() -> Vec<Vec<u8>> {
    let (below, above) = (temporary(), temporary());
    for name in ["usr/bin/kept", "usr/bin/deleted", "usr/bin/replaced", "etc/hidden/old"] {
        let path = below.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content(name)).unwrap();
    }
    fs::hard_link(below.path().join("usr/bin/kept"), below.path().join("usr/bin/linked")).unwrap();
    fs::set_permissions(below.path().join("usr/bin/kept"), Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir_all(above.path().join("usr/bin")).unwrap();
    fs::create_dir_all(above.path().join("etc/hidden")).unwrap();
    fs::write(above.path().join("usr/bin/.wh.deleted"), "").unwrap();
    fs::write(above.path().join("usr/bin/replaced"), content("replacement")).unwrap();
    fs::write(above.path().join("etc/hidden/.wh..wh..opq"), "").unwrap();
    fs::write(above.path().join("etc/hidden/new"), content("new")).unwrap();
    vec![tar(below.path()), tar(above.path())]
}

fn two_layer_image() -> Layout {
    let run = json!({ "Entrypoint": ["/usr/bin/kept"], "Env": ["A=b"], "User": "7:8", "Labels": { "l": "m" } });
    Layout::new(&two_layers(), &[("v1", run), ("v2", json!({ "Cmd": ["sh"] }))])
}

/// Checks an import of [`two_layer_image`].
fn assert_two_layers(lazyroot: &Lazyroot, id: &str) {
    let mounted = Mounted::new(&lazyroot.home().join("repository"), id);
    let bin = mounted.path().join("usr/bin");
    assert_eq!(fs::read(bin.join("kept")).unwrap(), content("usr/bin/kept"));
    assert_eq!(fs::metadata(bin.join("kept")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(bin.join("kept")).unwrap().ino(), fs::metadata(bin.join("linked")).unwrap().ino());
    assert_eq!(fs::read(bin.join("replaced")).unwrap(), content("replacement"));
    assert!(!bin.join("deleted").exists());
    let hidden: Vec<_> =
        fs::read_dir(mounted.path().join("etc/hidden")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(hidden, ["new"]);
}

#[test]
fn an_imported_directory_keeps_everything() {
    let (lazyroot, source) = (Lazyroot::default(), awkward_tree());
    let path = format!("dir:{}", source.path().display());
    let id = lazyroot.ok(["image", "import", &path, "--name", "awkward"]);
    let (id, name) = id.trim_end().split_once(' ').unwrap();
    assert_eq!(name, "awkward:latest");
    let mounted = Mounted::new(&lazyroot.home().join("repository"), id);
    let (files, _) = tree::assert_same(source.path(), mounted.path());
    assert!(files > 300);
    assert_no_leftovers(&lazyroot.home().join("repository"));
    // The second time changes nothing.
    let again = lazyroot.ok(["image", "import", &path, "--name", "awkward"]);
    assert_eq!(again.trim_end(), format!("{id} awkward:latest"));
}

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
fn an_oci_layout_becomes_one_tree() {
    let (lazyroot, layout) = (Lazyroot::default(), two_layer_image());
    let (id, name) = import(&lazyroot, &layout.source("v1"));
    assert!(name.ends_with(":v1"), "{name}");
    assert_two_layers(&lazyroot, &id);
    let config = &inspect(&lazyroot, &name)["config"];
    assert_eq!(config["entrypoint"], json!(["/usr/bin/kept"]));
    assert_eq!(config["env"], json!(["A=b"]));
    assert_eq!(config["user"], "7:8");
    assert_eq!(config["labels"], json!({ "l": "m" }));
    assert_eq!(config["architecture"], "amd64");
    assert_no_leftovers(&lazyroot.home().join("repository"));
    // The same in a tar file.
    let archive = temporary();
    let archive = archive.path().join("image.tar");
    File::create(&archive).unwrap().write_all(&tar(layout.0.path())).unwrap();
    let (again, name) = import(&lazyroot, &format!("oci-archive:{}:v1", archive.display()));
    assert_eq!((again.as_str(), name.as_str()), (id.as_str(), "image:v1"));
}

#[test]
fn images_that_differ_in_their_configuration_alone_keep_it() {
    let (lazyroot, layout) = (Lazyroot::default(), two_layer_image());
    for tag in ["v1", "v2"] {
        lazyroot.ok(["image", "import", &layout.source(tag), "--name", &format!("os:{tag}")]);
    }
    lazyroot.ok(["image", "tag", "os:v1", "copy"]);
    let (one, two) = (inspect(&lazyroot, "os:v1"), inspect(&lazyroot, "os:v2"));
    assert_eq!(one["id"], two["id"], "the same files");
    assert_eq!(one["config"]["entrypoint"], json!(["/usr/bin/kept"]));
    assert_eq!(two["config"]["entrypoint"], json!([]));
    assert_eq!(two["config"]["cmd"], json!(["sh"]));
    assert_eq!(inspect(&lazyroot, "copy")["config"], one["config"]);
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
    let start = Instant::now();
    // With a profile it would be put where a read of it is not seen.
    let profiles = lazyroot.home().join("repository/lazyroot/profiles");
    while fs::remove_file(profiles.join(store(&lazyroot).resolve("a").unwrap().id.to_hex())).is_err() {
        assert!(start.elapsed() < Duration::from_secs(30), "no profile was written");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mount = lazyroot.mount("a", &[]);
    read(&mount, "warm");
    read(&mount, "hot");
    // A guest tells now and then what it has read.
    let stats = loop {
        let stats: Value = serde_json::from_str(&lazyroot.ok(["store", "stats", "--format", "json"])).unwrap();
        if stats["hottest"][0]["runs"] == 2 && stats["reading"][0]["files"].as_array().unwrap().len() == 2 {
            break stats;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{stats}");
        std::thread::sleep(Duration::from_millis(100));
    };
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
    sh("bash", "bash", &["-n", script.to_str().unwrap()]);
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
    assert_eq!(files(&repository.join("objects")), Vec::<PathBuf>::new());
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

#[test]
fn an_import_repairs_what_is_missing_or_cut_short() {
    let (lazyroot, layout, source) = (Lazyroot::default(), two_layer_image(), awkward_tree());
    let repository = lazyroot.home().join("repository");
    let dir = format!("dir:{}", source.path().display());
    let oci = layout.source("v1");
    let object = |data: &[u8]| repository.join("objects").join(verity::digest(Algorithm::Sha256, data).object_path());
    let (dir_id, _) = import(&lazyroot, &dir);
    let (oci_id, _) = import(&lazyroot, &oci);
    fs::write(object(&pattern(3_000_001)), b"cut").unwrap();
    fs::remove_file(object(&pattern(4096))).unwrap();
    assert_eq!(import(&lazyroot, &dir).0, dir_id);
    tree::assert_same(source.path(), Mounted::new(&repository, &dir_id).path());
    fs::write(object(&content("replacement")), b"cut").unwrap();
    fs::remove_file(object(&content("usr/bin/kept"))).unwrap();
    assert_eq!(import(&lazyroot, &oci).0, oci_id);
    assert_two_layers(&lazyroot, &oci_id);
    // The manifest itself.
    let manifest = repository.join("images").join(oci_id.strip_prefix("sha256:").unwrap());
    let manifest = manifest.canonicalize().unwrap();
    let len = fs::metadata(&manifest).unwrap().len();
    fs::write(&manifest, vec![0; len as usize]).unwrap();
    assert_eq!(import(&lazyroot, &oci).0, oci_id);
    assert_two_layers(&lazyroot, &oci_id);
}

#[test]
fn a_full_disk_is_one_clear_error_and_breaks_nothing() {
    let (lazyroot, source, disk) = (Lazyroot::default(), awkward_tree(), temporary());
    let size =
        |size: &str| sh("mount", "mount", &["-o", &format!("remount,size={size}"), disk.path().to_str().unwrap()]);
    sh("mount", "mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.path().to_str().unwrap()]);
    let _unmount = Unmount(disk.path());
    let repository = disk.path().join("store");
    let arguments = [
        "--store".to_owned(),
        repository.display().to_string(),
        "image".to_owned(),
        "import".to_owned(),
        format!("dir:{}", source.path().display()),
    ];
    let error = lazyroot.error(&arguments);
    assert!(error.contains("is full") && error.contains(repository.to_str().unwrap()), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_no_leftovers(&repository);
    size("100m");
    lazyroot.ok(&arguments);
    // Not mounted: EROFS takes no image file on a tmpfs.
    let store = Store::at(&repository).unwrap();
    let image = store.resolve(&store.images().unwrap()[0].names[0]).unwrap();
    for &(id, size) in image.index.load().unwrap().entries() {
        let mut data = vec![0; size as usize];
        store.source().read(&Object { id, size }, 0, &mut data).unwrap();
        assert_eq!(verity::digest(Algorithm::Sha256, &data), id);
    }
    assert_eq!(image.read_file(store.source().as_ref(), "large").unwrap(), pattern(3_000_001));
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn an_interrupted_import_leaves_nothing_behind() {
    let (lazyroot, source) = (Lazyroot::default(), temporary());
    for i in 0..600u32 {
        fs::write(source.path().join(i.to_string()), [&i.to_le_bytes()[..], &pattern(20_000)].concat()).unwrap();
    }
    // However late the signal comes, this one is not read to its end by then. It takes no room until it is read.
    let endless = source.path().join("endless");
    fs::File::create(&endless).unwrap().set_len(16 << 30).unwrap();
    let dir = format!("dir:{}", source.path().display());
    let repository = lazyroot.home().join("repository");
    let mut child = lazyroot.command(["image", "import", &dir]).spawn().unwrap();
    let start = Instant::now();
    while !fs::read_dir(repository.join("objects")).is_ok_and(|mut folders| folders.next().is_some()) {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    // Not SIGINT, which whatever a script starts in the background ignores.
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert!(!child.wait().unwrap().success());
    assert_no_leftovers(&repository);
    assert_eq!(lazyroot.ok(["image", "ls"]).lines().count(), 1, "no image yet");
    fs::remove_file(endless).unwrap();
    let (id, _) = import(&lazyroot, &dir);
    tree::assert_same(source.path(), Mounted::new(&repository, &id).path());
}

#[test]
fn what_cannot_be_imported_is_explained() {
    let lazyroot = Lazyroot::default();
    let error = lazyroot.error(["image", "import", "dir:/no/such/folder"]);
    assert!(error.contains("/no/such/folder") && error.contains("No such file"), "{error}");
    assert!(lazyroot.error(["image", "import", "dir:/etc/passwd"]).contains("no folder"));
    assert!(lazyroot.error(["image", "import", "oci:/no/such/layout"]).contains("/no/such/layout"));
    let output =
        lazyroot.command(["image", "import", "docker://localhost/a"]).env("PATH", "/nowhere").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("apt-get install skopeo"));
    let other = temporary();
    fs::write(other.path().join("file"), "").unwrap();
    let error = lazyroot.error(["--store", other.path().to_str().unwrap(), "image", "ls"]);
    assert!(error.contains("is no store"), "{error}");
}

#[test]
fn a_sha512_repository_works_too() {
    let (dir, source) = (temporary(), awkward_tree());
    let config = composefs::repository::RepositoryConfig::new(composefs::fsverity::Algorithm::SHA512).set_insecure();
    let path = dir.path().join("repository");
    Repository::<composefs::fsverity::Sha512HashValue>::init_path(CWD, &path, config).unwrap();
    let store = Store::at(&path).unwrap();
    assert_eq!(store.algorithm(), Algorithm::Sha512);
    let image = store.import(&Source::Directory(source.path().to_owned()), Some("x"), &Progress::hidden()).unwrap();
    assert_eq!(image.read_file(store.source().as_ref(), "/deep/large-too").unwrap(), pattern(3_000_001));
    let large = Object { id: verity::digest(Algorithm::Sha512, &pattern(3_000_001)), size: 3_000_001 };
    assert_eq!(*store.source().leaves(&large).unwrap(), verity::leaves(Algorithm::Sha512, &pattern(3_000_001)));
}

#[test]
fn objects_are_shared_with_podmans_storage() {
    let (lazyroot, layout, podman) = (Lazyroot::default(), two_layer_image(), temporary());
    let (root, run) = (podman.path().join("root"), podman.path().join("run"));
    // skopeo leaves this folder mounted onto itself, as podman does.
    let overlay = root.join("overlay");
    let _unmount = Unmount(&overlay);
    let place = format!("containers-storage:[overlay@{}+{}]localhost/os:v1", root.display(), run.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        mounts.lines().any(|line| line.split(' ').nth(4) == Some("/")),
        "skopeo unpacks no layer where / is no mount point: 'mount --bind DIR DIR' before 'chroot DIR'"
    );
    sh("skopeo", "skopeo", &["copy", &layout.source("v1"), &place]);
    let (id, name) = import(&lazyroot, &place);
    assert_eq!(name, "localhost/os:v1");
    assert_two_layers(&lazyroot, &id);
    assert_eq!(inspect(&lazyroot, &name)["config"]["entrypoint"], json!(["/usr/bin/kept"]));
    let theirs: HashSet<u64> =
        files(&overlay).iter().filter_map(|path| path.symlink_metadata().ok()).map(|meta| meta.ino()).collect();
    let store = store(&lazyroot);
    let image = store.resolve(&name).unwrap();
    assert!(image.index.objects() >= 3);
    for (object, _) in image.index.load().unwrap().entries() {
        let meta = fs::metadata(store.path().join("objects").join(object.object_path())).unwrap();
        assert!(theirs.contains(&meta.ino()), "{object} was copied");
    }
    // podman's storage stays whole, for skopeo to read.
    let back = temporary();
    sh("skopeo", "skopeo", &["copy", &place, &format!("oci:{}:x", back.path().display())]);
}

/// A registry on a port of its own.
struct Registry {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = temporary();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("localhost:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            dir.path().join("data").display()
        );
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let registries = format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n");
        let home = dir.path().join("home/.config/containers");
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("registries.conf"), registries).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{error}: apt-get install docker-registry"));
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "the registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, address, dir }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_is_pulled_from_a_registry() {
    let (lazyroot, layout, registry) = (Lazyroot::default(), two_layer_image(), Registry::start());
    let reference = format!("docker://{}/team/os:v1", registry.address);
    sh("skopeo", "skopeo", &["copy", "--dest-tls-verify=false", &layout.source("v1"), &reference]);
    let mut command = lazyroot.command(["image", "import", &reference]);
    // Where skopeo learns that this registry speaks plain HTTP.
    command.env("HOME", registry.dir.path().join("home")).env_remove("XDG_CONFIG_HOME");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "no bars where there is no terminal");
    let line = String::from_utf8(output.stdout).unwrap();
    let (id, name) = line.trim_end().split_once(' ').unwrap();
    assert_eq!(name, format!("{}/team/os:v1", registry.address));
    assert_two_layers(&lazyroot, id);
    // The same files as from the layout.
    assert_eq!(import(&lazyroot, &layout.source("v1")).0, id);
}
