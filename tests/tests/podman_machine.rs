//! Promises about kernels from a podman machine, with a stand-in for podman: its machine is a folder with Debian's
//! kernel, in which the very command runs that lazyroot sends.

use std::fs;
use std::process::Command;

use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::programs::write_script;
use lazyroot_tests::{kernel_deb, vfkit};
use tempfile::TempDir;

/// What `podman machine inspect` prints, as podman 5 has it.
const INSPECT: &str = r#"[{"ConfigDir":{"Path":"/nowhere"},"Name":"podman-machine-default","State":"STATE","Rootful":false,
"Resources":{"CPUs":4,"DiskSize":100,"Memory":2048},"SSHConfig":{"Port":60000,"RemoteUsername":"core"}}]"#;

/// A folder for `PATH` with a podman that does this.
fn podman(script: &str) -> TempDir {
    let dir = TempDir::with_prefix("lr").unwrap();
    write_script(&dir.path().join("podman"), script);
    dir
}

/// A podman whose machine is in `state`, and runs `ssh` for a command.
fn with_machine(state: &str, ssh: &str) -> TempDir {
    let inspect = INSPECT.replace("STATE", state);
    podman(&format!(
        "case \"$1 $2\" in\n'machine inspect') cat <<'END'\n{inspect}\nEND\n;;\n'machine ssh') {ssh} ;;\nesac"
    ))
}

fn import(lazyroot: &Lazyroot, podman: &TempDir) -> Command {
    let mut command = lazyroot.command(["kernel", "import", "podman-machine"]);
    command.env("PATH", vfkit::path_of(podman.path()));
    command
}

fn error(podman: &TempDir) -> String {
    let lazyroot = Lazyroot::default();
    let output = import(&lazyroot, podman).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(
        fs::read_dir(lazyroot.home().join("kernels")).map_or(0, |kernels| kernels.count()),
        0,
        "nothing is left"
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_kernel_that_a_podman_machine_runs_is_imported_with_its_modules() {
    let machine = TempDir::with_prefix("lr").unwrap();
    let unpacked = Command::new("dpkg-deb").arg("-x").arg(kernel_deb()).arg(machine.path()).status().unwrap();
    assert!(unpacked.success());
    let modules = machine.path().join("usr/lib/modules");
    let release = fs::read_dir(&modules).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    // Where Fedora CoreOS has it.
    fs::rename(machine.path().join(format!("boot/vmlinuz-{release}")), modules.join(&release).join("vmlinuz")).unwrap();
    let ssh = format!(
        "uname() {{ echo {release}; }}; root() {{ [ \"$1\" = / ] && command cd {}; }}; eval \"$(echo \"$4\" | sed 's/^cd /root /')\"",
        machine.path().display()
    );
    let (lazyroot, podman) = (Lazyroot::default(), with_machine("running", &ssh));
    let output = import(&lazyroot, &podman).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = lazyroot.ok(["kernel", "ls"]);
    assert!(listed.contains(&release) && listed.contains("podman-machine:podman-machine-default"), "{listed}");
    let bundle = fs::read(lazyroot.home().join("kernels").join(&release).join("bundle.json")).unwrap();
    assert!(String::from_utf8_lossy(&bundle).contains("vmw_vsock_virtio_transport"));
}

#[test]
fn what_is_wrong_with_the_machine_is_said_with_the_command_that_mends_it() {
    let stopped = error(&with_machine("stopped", "false"));
    assert!(stopped.contains("is stopped") && stopped.contains("podman machine start"), "{stopped}");
    let none = error(&podman("echo 'Error: podman-machine-default: VM does not exist' >&2; exit 125"));
    assert!(none.contains("VM does not exist") && none.contains("podman machine init"), "{none}");
    let broken = error(&with_machine("running", "echo 'ssh: connection reset' >&2; exit 255"));
    assert!(broken.contains("connection reset") && broken.contains("255"), "{broken}");
    let lazyroot = Lazyroot::default();
    let missing = lazyroot.command(["kernel", "import", "podman-machine"]).env("PATH", "/nowhere").output().unwrap();
    let missing = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.contains("podman") && missing.contains("brew install podman"), "{missing}");
}
