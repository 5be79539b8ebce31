//! Promises about what a VM starts: the image's systemd, or its entrypoint.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::fs;
use std::path::Path;
use std::process::Command;

use lazyroot_tests::images::{debian, tiny_root};
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::vms::Vm;
use lazyroot_tests::{rootfs, run_program, temporary, text};

#[test]
fn systemd_boots_as_in_production() {
    let lazyroot = Lazyroot::default();
    lazyroot.import_kernel();
    // An image with the marks of the machine that it was made on.
    let tree = temporary();
    let copy = Command::new("cp").arg("-a").arg(rootfs().join(".")).arg(tree.path()).status().unwrap();
    assert!(copy.success());
    fs::write(tree.path().join("etc/hostname"), "builder\n").unwrap();
    fs::write(tree.path().join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
    // A machine with an id has had its first boot, which makes the keys.
    run_program("ssh-keygen", "openssh-client", &["-q", "-A", "-f", tree.path().to_str().unwrap()]);
    let labelled = tree.path().join("etc/issue");
    xattr::set(&labelled, "security.selinux", b"system_u:object_r:etc_t:s0\0").unwrap();
    lazyroot.import(tree.path(), "systemd");
    let here = temporary();
    let unit = here.path().join("hello.service");
    fs::write(
        &unit,
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nImportCredential=greeting\n\
        ExecStart=/bin/sh -c 'cat $CREDENTIALS_DIRECTORY/greeting >/var/tmp/hello'\n",
    )
    .unwrap();
    let greeting = here.path().join("greeting");
    fs::write(&greeting, b"hello \xff").unwrap();
    let credential = format!("greeting={}", greeting.display());
    let options = ["--credential", &credential, "--unit", unit.to_str().unwrap(), "--wait", "ssh", "systemd"];
    let vm = Vm::start(&lazyroot, "production", &options);
    // Ready means that systemd says so, and that no unit has failed.
    assert_eq!(vm.sh("systemctl is-system-running || systemctl --failed --no-legend; true"), "running\n");
    assert_eq!(vm.sh("hostname; hostnamectl --static 2>/dev/null; true").lines().next(), Some("production"));
    assert_ne!(vm.sh("cat /etc/machine-id").trim(), "0123456789abcdef0123456789abcdef");
    assert_eq!(vm.ok(&["exec"], &["od", "-An", "-c", "/var/tmp/hello"]).trim(), "h   e   l   l   o     377");
    assert_eq!(vm.sh("cat /proc/cmdline").matches("greeting").count(), 0);
    // /etc and /var can be written; labels are the image's.
    vm.sh("echo x >/etc/new; mkdir -p /var/lib/new; echo y >/var/lib/new/file");
    let label = "python3 -c 'import os; print(os.getxattr(\"/etc/issue\", \"security.selinux\"))'";
    assert_eq!(vm.sh(label), "b'system_u:object_r:etc_t:s0\\x00'\n");
    // Containers can: their storage is no overlay, and what they do to start works.
    assert_eq!(vm.sh("findmnt -n -o FSTYPE -T /var/lib/containers"), "tmpfs\n");
    let container = "cd /var/lib/containers; mkdir -p upper work merged; \
        mount -t overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work overlay merged; \
        unshare --mount --pid --fork --uts chroot merged sh -c 'echo changed >/etc/issue; cat /etc/issue; id -un'";
    assert_eq!(vm.sh(container), "changed\nroot\n");
    // What a reboot or shutdown would do is done: units stop before the end.
    vm.ok(&["stop", "--time", "120"], &[]);
    assert_eq!(vm.state(), "exited");
    // A unit that fails, one that is not there, and one that is waited for.
    let bad = here.path().join("bad.service");
    fs::write(&bad, "[Service]\nType=oneshot\nExecStart=/bin/false\n").unwrap();
    let said =
        lazyroot.error(Vm::arguments("bad", &["--unit", bad.to_str().unwrap(), "--wait", "bad.service", "systemd"]));
    assert!(said.contains("bad.service has failed"), "{said}");
    let said = lazyroot.error(Vm::arguments("none", &["--wait", "none.service", "systemd"]));
    assert!(said.contains("no unit none.service"), "{said}");
    let _early = Vm::start(&lazyroot, "early", &["--wait", "systemd-journald.service", "systemd"]);
}

#[test]
fn the_demo_image_has_a_first_boot_and_lets_ssh_in() {
    let debian = debian();
    let vm = Vm::start(&debian, "first", &["--wait", "ssh", "debian"]);
    assert_eq!(debian.ok(["ssh", "first", "id -un; hostname"]), "root\nfirst\n");
    assert_eq!(vm.sh("systemctl is-system-running || systemctl --failed --no-legend; true"), "running\n");
    assert_eq!(vm.sh("systemctl is-active ssh"), "active\n");
    assert_eq!(vm.sh("cat /etc/machine-id").trim().len(), 32);
}

#[test]
fn an_oci_image_runs_its_entrypoint() {
    let lazyroot = Lazyroot::default();
    lazyroot.import_kernel();
    let (root, oci) = (tiny_root(), temporary());
    let layout = oci.path().join("image");
    write_oci_image(root.path(), &layout, &["/bin/busybox", "sh", "-c", "echo $GREETING; pwd; id -u; exit 4"]);
    lazyroot.ok(["image", "import", &format!("oci:{}", layout.display()), "--name", "entry"]);
    let output = lazyroot.run(["run", "--hypervisor", "qemu:tcg", "entry"]);
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("hello\n/srv\n77\n", Some(4)),
        "{}",
        text(&output.stderr)
    );
    let vm = Vm::start(&lazyroot, "entry", &["entry"]);
    assert_eq!(lazyroot.ok(["wait", "entry"]), "4\n");
    assert_eq!(vm.ok(&["logs"], &[]), "hello\n/srv\n77\n");
}

/// An OCI layout with one layer, the tree at `root`, by skopeo's rules and without its help.
fn write_oci_image(root: &Path, layout: &Path, entrypoint: &[&str]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    for dir in ["srv", "usr"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let blob = |content: &[u8]| {
        let digest: String = ring::digest::digest(&ring::digest::SHA256, content)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&digest), content).unwrap();
        (format!("sha256:{digest}"), content.len())
    };
    let layer =
        Command::new("tar").args(["--sort=name", "--owner=0", "--group=0", "-cC"]).arg(root).arg(".").output().unwrap();
    assert!(layer.status.success());
    let (layer, layer_size) = blob(&layer.stdout);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]},
        "config": {"Entrypoint": entrypoint, "Env": ["GREETING=hello"], "WorkingDir": "/srv", "User": "77"},
    });
    let (config, config_size) = blob(config.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
    });
    let (manifest, manifest_size) = blob(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": manifest_size}],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
