//! Promises about imports, from real sources: folders, OCI layouts, podman's storage, a registry.
//!
//! Device nodes, mounts and podman's storage need root.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use composefs::repository::Repository;
use lazyroot::store::{Object, Progress, Source, Store};
use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::awkward::{awkward_tree, pattern};
use lazyroot_tests::inputs::need_root;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::mounts::{Mounted, Unmount};
use lazyroot_tests::oci::*;
use lazyroot_tests::programs::start_on_port;
use lazyroot_tests::stores::{assert_no_leftovers, files, import, inspect, store};
use lazyroot_tests::tree;
use lazyroot_tests::wait::until;
use lazyroot_tests::{run_program, temporary};
use rustix::fs::CWD;
use serde_json::json;
use tempfile::TempDir;

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
    File::create(&archive).unwrap().write_all(&tar(layout.path())).unwrap();
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
    let size = |size: &str| {
        run_program("mount", "mount", &["-o", &format!("remount,size={size}"), disk.path().to_str().unwrap()])
    };
    run_program("mount", "mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", disk.path().to_str().unwrap()]);
    let _unmount = Unmount(disk.path().to_owned());
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
    until("the first object is there", || {
        assert_eq!(child.try_wait().unwrap(), None, "the import goes on");
        fs::read_dir(repository.join("objects")).is_ok_and(|mut folders| folders.next().is_some())
    });
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
    need_root();
    let (root, run) = (podman.path().join("root"), podman.path().join("run"));
    // skopeo leaves this folder mounted onto itself, as podman does.
    let overlay = root.join("overlay");
    let _unmount = Unmount(overlay.clone());
    let place = format!("containers-storage:[overlay@{}+{}]localhost/os:v1", root.display(), run.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        mounts.lines().any(|line| line.split(' ').nth(4) == Some("/")),
        "skopeo unpacks no layer where / is no mount point: 'mount --bind DIR DIR' before 'chroot DIR'"
    );
    run_program("skopeo", "skopeo", &["copy", &layout.source("v1"), &place]);
    let (id, name) = import(&lazyroot, &place);
    assert_eq!(name, "localhost/os:v1");
    assert_two_layers(&lazyroot, &id);
    assert_eq!(inspect(&lazyroot, &name)["config"]["entrypoint"], json!(["/usr/bin/kept"]));
    let theirs: HashSet<u64> =
        files(&overlay).iter().filter_map(|(path, _)| path.symlink_metadata().ok()).map(|meta| meta.ino()).collect();
    let store = store(&lazyroot);
    let image = store.resolve(&name).unwrap();
    assert!(image.index.objects() >= 3);
    for (object, _) in image.index.load().unwrap().entries() {
        let meta = fs::metadata(store.path().join("objects").join(object.object_path())).unwrap();
        assert!(theirs.contains(&meta.ino()), "{object} was copied");
    }
    // podman's storage stays whole, for skopeo to read.
    let back = temporary();
    run_program("skopeo", "skopeo", &["copy", &place, &format!("oci:{}:x", back.path().display())]);
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
        let (child, port) = start_on_port("docker-registry (apt-get install docker-registry)", |port| {
            let config = format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
                dir.path().join("data").display()
            );
            fs::write(dir.path().join("config.yml"), config).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(dir.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
            command
        });
        let address = format!("localhost:{port}");
        let registries = format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n");
        let home = dir.path().join("home/.config/containers");
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join("registries.conf"), registries).unwrap();
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
    run_program("skopeo", "skopeo", &["copy", "--dest-tls-verify=false", &layout.source("v1"), &reference]);
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
