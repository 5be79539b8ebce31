//! Promises about VMs that keep what their guests write, and about images made of VMs.
//!
//! Every VM here runs under TCG: a test must not depend on a KVM that works.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use lazyroot_tests::images::debian;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::stores::{files, repository};
use lazyroot_tests::text;
use lazyroot_tests::vms::{Vm, kill};
use lazyroot_tests::wait::until;

#[test]
fn a_persistent_vm_keeps_what_its_guest_writes() {
    let debian = debian();
    let words = ["--persist=2G", "debian", "--", "sleep", "10000"];
    let vm = Vm::start(&debian, "kept", &words);
    assert_eq!(
        vm.sh("findmnt -n -o FSTYPE /; echo first >/root/file; rm /etc/issue; mkdir -p /etc/new/deep; nproc"),
        "overlay\n1\n"
    );
    let error = debian.error(["snapshot", "kept", "one"]);
    assert!(error.contains("is running"), "{error}");
    vm.ok(&["stop"], &[]);
    assert!(debian.ok(["ps", "-a"]).contains("kept"));
    debian.ok(["snapshot", "kept", "one"]);
    debian.ok(["resize", "kept", "4G"]);
    debian.ok(["update", "--cpus", "2", "--memory", "700M", "kept"]);
    // A copy of its own from here on.
    debian.ok(["fork", "kept", "forked"]);
    assert_eq!(debian.ok(["start", "kept"]), "kept\n");
    let script = "cat /root/file; ls /etc/issue /etc/new; nproc; hostname; echo second >/root/file";
    assert_eq!(
        vm.sh(&format!("{{ {script}; }} 2>&1")),
        "first\nls: cannot access '/etc/issue': No such file or directory\n/etc/new:\ndeep\n2\nkept\n"
    );
    let error = debian.error(["start", "kept"]);
    assert!(error.contains("is running"), "{error}");
    // Its file system has grown with its disk: more than it had fits. What is removed takes no room here.
    vm.sh("fallocate -l 2500M /root/large && rm /root/large");
    // Whatever ends it: what was synced is there.
    vm.sh("sync");
    kill(vm.pids().0);
    until("it is lost", || vm.state() == "lost");
    debian.ok(["start", "kept"]);
    assert_eq!(vm.sh("cat /root/file"), "second\n");
    let forked = Vm::named(&debian, "forked");
    debian.ok(["start", "forked"]);
    assert_eq!(forked.sh("cat /root/file; hostname"), "first\nforked\n");
    forked.ok(&["stop"], &[]);
    // What the guests made is an ext4 that others find nothing wrong with, once the journal is replayed.
    let disk = debian.home().join("vms/forked/disk.raw");
    let check = |how: &str| Command::new("/sbin/e2fsck").arg(how).arg(&disk).output().expect("e2fsck is there");
    check("-p");
    let said = check("-fn");
    assert!(said.status.success(), "{}", text(&said.stdout));
    assert!(fs::metadata(&disk).unwrap().blocks() * 512 < 64 << 20, "it is sparse no more");
    debian.ok(["fork", "kept@one", "older"]);
    let older = Vm::named(&debian, "older");
    assert_eq!(older.state(), "stopped");
    // What cannot be.
    for (words, said) in [
        (&["start", "nobody"][..], "there is no VM 'nobody'"),
        (&["fork", "kept@none", "x"], "no snapshot 'none'"),
        (&["fork", "older", "kept"], "is running already"),
        (&["resize", "older", "1G"], "cannot shrink"),
    ] {
        let error = debian.error(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    older.ok(&["rm"], &[]);
    vm.ok(&["rm", "--force"], &[]);
    assert!(debian.error(["start", "kept"]).contains("there is no VM 'kept'"));
    // A disk that cannot be had is an error, and leaves nothing.
    let error = debian.error(Vm::arguments("huge", &["--persist=4000000G", "debian", "--", "true"]));
    assert!(error.contains("to 4 TiB"), "{error}");
    let error = debian.error(Vm::arguments("small", &["--persist=1M", "debian", "--", "true"]));
    assert!(error.contains("give 128 MiB"), "{error}");
    // One whose command cannot be run is none either.
    let output = debian.run(Vm::arguments("none", &["--persist", "debian", "--", "/no/such/program"]));
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    let left = debian.ok(["ps", "-qa"]);
    assert!(!["huge", "small", "none"].iter().any(|name| left.contains(name)), "{left}");
}

/// Objects in the store of a home, and their bytes.
fn objects(lazyroot: &Lazyroot) -> BTreeMap<PathBuf, u64> {
    files(&repository(lazyroot).join("objects")).into_iter().collect()
}

#[test]
fn a_vm_with_its_changes_becomes_an_image_that_boots() {
    let debian = debian();
    let vm = Vm::start(&debian, "base", &["--persist=1G", "debian", "--", "sleep", "10000"]);
    let python = "python3 -c 'import os; ";
    // All that an overlay can say of lower files, and what is new.
    vm.sh(&format!(
        "set -e; cd /root; head -c 300000 /dev/zero | tr '\\0' n >new; echo small >small; ln new twin; ln -s new link; mkfifo pipe
        rm /etc/issue; rm -r /usr/share/common-licenses; mkdir /usr/share/common-licenses; echo own >/usr/share/common-licenses/own
        mv /etc/apt /etc/renamed; echo more >/etc/renamed/more; mv /usr/share/base-files /srv/moved; rm /srv/moved/motd
        chmod 700 /usr/bin/python3.13; mv /usr/bin/tac /usr/bin/cat-backwards; chown 7:8 /etc/fstab /usr/bin/id
        {python} os.setxattr(\"/root/new\", \"user.colour\", b\"blue\"); os.setxattr(\"/usr/bin/id\", \"user.a\", b\"b\")'
        mv /etc/debian_version /etc/moved; echo more >>/etc/moved; mkdir /root/dir; mv /etc/moved /root/dir
        {python} os.setxattr(\"/root/small\", \"user.a=b\", b\"c\")'; echo old >/root/old; touch -d @-1000000 /root/old
        rm /etc/issue.net; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/etc/issue.net\")'
        echo changed >>/etc/passwd; touch -d @1000000000.123456789 /root/small; echo of the VM >/etc/resolv.conf; rm -f /etc/hostname"
    ));
    let look = format!(
        "cd /root; wc -c <new; cat small; stat -c %h new; readlink link; stat -c %F pipe; stat -c %y small | cut -d. -f1
        ls /etc/issue /etc/apt /usr/share/base-files /usr/bin/tac 2>&1 | wc -l; ls /usr/share/common-licenses
        ls /etc/renamed | grep -c . ; cat /etc/renamed/more; ls /srv/moved | sort; stat -c %a /usr/bin/python3.13
        cat-backwards /etc/fstab | wc -l; stat -c %u:%g /etc/fstab /usr/bin/id; /usr/bin/id -u; tail -1 /etc/passwd
        cat /root/dir/moved; ls /etc/debian_version 2>&1; stat -c %Y /root/old; {python} print(os.getxattr(\"/root/small\", \"user.a=b\"))'
        {python} print(os.getxattr(\"/root/new\", \"user.colour\"), os.getxattr(\"/usr/bin/id\", \"user.a\"))'
        find / -xdev -type f | grep -v '^/\\(root\\|etc\\|var\\|run\\)' | sort | md5sum"
    );
    let seen = vm.sh(&look);
    let before = objects(&debian);
    // While it runs.
    let said = debian.ok(["commit", "base", "mine:1"]);
    assert!(said.starts_with("sha256:") && said.ends_with(" mine:1\n"), "{said}");
    let after = objects(&debian);
    let new: Vec<u64> = after.iter().filter(|(path, _)| !before.contains_key(*path)).map(|(_, bytes)| *bytes).collect();
    // The new file, the changed one, and the manifest.
    assert_eq!(new.len(), 3, "{new:?}");
    assert!(new.contains(&300_000), "{new:?}");
    let fresh = Vm::start(&debian, "fresh", &["mine:1", "--", "sleep", "10000"]);
    assert_eq!(fresh.sh(&look), seen);
    assert_eq!(fresh.sh("cat /etc/resolv.conf | grep -c VM; true"), "0\n");
    // A socket is nobody's any more, and the file that it took the place of is gone.
    assert_eq!(fresh.sh("ls /etc | grep -c issue; true"), "0\n");
    // Once more from what was committed, by a VM in memory: what is removed is gone, and what was there is not written.
    fresh.sh("rm -r /root/new /root/twin /srv/moved; echo again >/root/again");
    debian.ok(["commit", "fresh", "mine:2"]);
    let again = Vm::start(&debian, "again", &["mine:2", "--", "sleep", "10000"]);
    assert_eq!(
        again.sh("cat /root/again; ls /root /srv; cat /etc/renamed/more"),
        "again\n/root:\nagain\ndir\nlink\nold\npipe\nsmall\n\n/srv:\nmore\n"
    );
    assert_eq!(objects(&debian).len(), after.len() + 1, "only a manifest is new");
    // Stopped: the same image, to the bit, as nothing has changed.
    vm.ok(&["stop"], &[]);
    let stopped = debian.ok(["commit", "base", "mine:3"]);
    assert_eq!(stopped.split(' ').next(), said.split(' ').next());
    assert_eq!(objects(&debian).len(), after.len() + 1);
    // Its image is needed by it, whether it runs or not, and by its fork.
    let image = vm.inspect()["image"].as_str().unwrap().to_owned();
    debian.ok(["fork", "base", "copy"]);
    let copy = Vm::named(&debian, "copy");
    let error = debian.error(["image", "rm", "debian"]);
    assert!(error.contains("VM base (stopped)") && error.contains("VM copy (stopped)"), "{error}");
    vm.ok(&["rm"], &[]);
    let error = debian.error(["image", "rm", &image]);
    assert!(!error.contains("VM base") && error.contains("VM copy (stopped)"), "{error}");
    debian.ok(["store", "gc"]);
    debian.ok(["start", "copy"]);
    assert_eq!(copy.sh("cat /root/small"), "small\n");
    // What cannot be.
    for (words, said) in
        [(&["commit", "nobody", "x"][..], "no VM 'nobody'"), (&["commit", "copy", "UPPER CASE"], "UPPER CASE")]
    {
        let error = debian.error(words);
        assert!(error.contains(said), "{words:?}: {error}");
    }
    again.ok(&["stop"], &[]);
    let error = debian.error(["commit", "again", "x"]);
    assert!(error.contains("--persist"), "{error}");
}

#[test]
fn a_full_disk_is_the_guests_error_and_containers_of_a_persistent_vm_are_on_it() {
    let debian = debian();
    let vm = Vm::start(&debian, "full", &["--persist=256M", "debian", "--", "sleep", "10000"]);
    assert_eq!(vm.sh("findmnt -n -o FSTYPE -T /var/lib/containers; echo kept >/var/lib/containers/file"), "ext4\n");
    let said = vm.sh("head -c 400M /dev/zero 2>&1 >/root/large; true");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(vm.sh("rm /root/large; echo works >/root/file; cat /root/file"), "works\n");
    vm.ok(&["stop"], &[]);
    debian.ok(["start", "full"]);
    assert_eq!(vm.sh("cat /root/file /var/lib/containers/file"), "works\nkept\n");
    let error = debian.error(Vm::arguments("full", &["--persist", "debian", "--", "true"]));
    assert!(error.contains("'full' is running already"), "{error}");
    for words in [&["update", "--cpus", "2", "full"][..], &["resize", "full", "1G"], &["fork", "full", "other"]] {
        let error = debian.error(words);
        assert!(error.contains("is running: 'lazyroot stop full' first"), "{error}");
    }
    vm.ok(&["stop"], &[]);
    let error = debian.error(Vm::arguments("full", &["--persist", "debian", "--", "true"]));
    assert!(error.contains("lazyroot rm full"), "{error}");
    let error = debian.error(["update", "--kernel", "1.2.3", "full"]);
    assert!(error.contains("1.2.3"), "{error}");
}
