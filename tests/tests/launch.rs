//! Promises about launching a VM.
//!
//! How long a launch takes is for `make bench` to say: a time that is asserted fails on a busy machine.

use std::process::{Command, Stdio};

use lazyroot_tests::lazyroot::{Lazyroot, give_environment};
use lazyroot_tests::{data, kernel_deb, rootfs};

/// What one launch may write to the host's disk, in bytes: logs and sockets, nothing that grows with the image.
const MOST_WRITTEN: u64 = 1 << 20;

/// Launches a VM of `image`. Bytes written to disk as lazyroot reports them, and as the kernel counts them for
/// lazyroot and all the processes it waited for.
fn launch(lazyroot: &Lazyroot, image: &str) -> (u64, u64) {
    // A process's count takes in those of the children it has waited for (proc_pid_io(5)): a shell of its own
    // for each launch counts nothing else.
    let script = "\"$@\" && exec cat /proc/self/io";
    let run = lazyroot.command(["run", "--report=json", "--hypervisor", "qemu:tcg", image, "--", "true"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(run.get_program()).args(run.get_args());
    give_environment(&mut shell, &run);
    let output = shell.stdin(Stdio::null()).output().expect("the shell starts");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the launch failed with {}: {errors}", output.status);
    let report: serde_json::Value = serde_json::from_str(errors.lines().last().expect("a report")).expect("JSON");
    let counted = out.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("the kernel counts");
    (report["disk_bytes_written"].as_u64().expect("a number"), counted.parse().expect("a number"))
}

#[test]
fn a_launch_writes_next_to_nothing_to_the_disk_however_large_the_image_is() {
    let lazyroot = Lazyroot::default();
    lazyroot.ok(["kernel", "import", &kernel_deb().to_string_lossy()]);
    lazyroot.import(&rootfs(), "small");
    let tree = tempfile::tempdir().unwrap();
    let copy = Command::new("cp").arg("-a").arg(rootfs().join(".")).arg(tree.path()).status().unwrap();
    assert!(copy.success());
    data::grow(tree.path(), 1800).unwrap();
    lazyroot.import(tree.path(), "large");
    drop(tree);
    // The first launch makes the initramfs, which later ones share.
    launch(&lazyroot, "small");
    for image in ["small", "large"] {
        let (reported, counted) = launch(&lazyroot, image);
        assert!(reported <= MOST_WRITTEN, "{image}: {reported} bytes by lazyroot's own report");
        assert!(counted <= MOST_WRITTEN, "{image}: {counted} bytes by the kernel's count");
    }
}
