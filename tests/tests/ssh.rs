//! Promises about upstreams over ssh, with a real OpenSSH server.
//!
//! Mounts need root.

use std::fs::{self};
use std::process::{Child, Command, Stdio};

use lazyroot_tests::data::small_tree;
use lazyroot_tests::far_end::kill_meanwhile;
use lazyroot_tests::inputs::LAZYROOT;
use lazyroot_tests::inputs::need_root;
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::programs::start_on_port;
use lazyroot_tests::tree;
use tempfile::TempDir;

/// An OpenSSH server of the test's own, on loopback, that lets one key in.
struct Sshd {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl Sshd {
    fn start() -> Self {
        need_root();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path(name)]).status();
            assert!(made.expect("apt-get install openssh-client").success());
        }
        fs::copy(path("user.pub"), path("authorized")).unwrap();
        // Where sshd's privileged half lives; it makes sure of that itself only when init starts it.
        fs::create_dir_all("/run/sshd").unwrap();
        let (child, port) = start_on_port("sshd", |port| {
            let config = format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPermitRootLogin yes\n",
                path("host"),
                path("authorized")
            );
            fs::write(path("config"), config).unwrap();
            let mut command = Command::new("/usr/sbin/sshd");
            command.args(["-D", "-e", "-f", &path("config")]).stderr(Stdio::null());
            command
        });
        let known = fs::read_to_string(path("host.pub")).unwrap();
        fs::write(path("known"), format!("[127.0.0.1]:{port} {known}")).unwrap();
        Self { child, dir, port }
    }

    /// The ssh that may come in.
    fn client(&self, key: &str) -> String {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        format!(
            "ssh -F /dev/null -oIdentitiesOnly=yes -i {} -oUserKnownHostsFile={} -oStrictHostKeyChecking=yes",
            path(key),
            path("known")
        )
    }

    fn upstream(&self) -> String {
        format!("ssh://root@127.0.0.1:{}", self.port)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `config.toml` whose one upstream is `url`, with `far`'s program there.
fn configure(near: &Lazyroot, url: &str, far: &Lazyroot) {
    let program = format!("env LAZYROOT_HOME={} {}", far.home().display(), LAZYROOT.path().display());
    near.configure(&format!("[[upstream]]\nurl = \"{url}\"\nprogram = \"{program}\"\n"));
}

#[test]
fn ssh_brings_an_image_from_another_machine_and_survives_its_connections_end() {
    let (far, near, source, sshd) = (Lazyroot::default(), Lazyroot::default(), small_tree(2000), Sshd::start());
    far.import(source.path(), "many");
    configure(&near, &sshd.upstream(), &far);
    let ssh = sshd.client("user");
    let mount = near.mount_with("many", &["--cache-size", "0"], &[("LAZYROOT_SSH", &ssh)]);
    let kills = kill_meanwhile(&far, || {
        for _ in 0..3 {
            tree::assert_same(source.path(), mount.path());
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
    });
    assert!(kills > 0, "the far end was never killed");
}

#[test]
fn an_ssh_that_fails_says_why_and_what_to_do() {
    let (far, near, sshd) = (Lazyroot::default(), Lazyroot::default(), Sshd::start());
    let dir = tempfile::tempdir().unwrap();
    let said = |ssh: &str| {
        let mut command = near.command(["mount", "x", dir.path().to_str().unwrap()]);
        let output = command.env("LAZYROOT_SSH", ssh).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        String::from_utf8(output.stderr).unwrap()
    };
    configure(&near, &sshd.upstream(), &far);
    // The host's key is not the user's.
    let error = said(&sshd.client("host"));
    assert!(error.contains("ssh-copy-id root@127.0.0.1") && error.contains(&sshd.upstream()), "{error}");
    fs::write(sshd.dir.path().join("known"), "").unwrap();
    let error = said(&sshd.client("user"));
    assert!(error.contains("its host key is not known here"), "{error}");
    let key = fs::read_to_string(sshd.dir.path().join("host.pub")).unwrap();
    fs::write(sshd.dir.path().join("known"), format!("[127.0.0.1]:{} {key}", sshd.port)).unwrap();
    near.configure(&format!("[[upstream]]\nurl = '{}'\nprogram = 'no-such-lazyroot'\n", sshd.upstream()));
    let error = said(&sshd.client("user"));
    assert!(error.contains("no lazyroot in its PATH"), "{error}");
    configure(&near, &sshd.upstream(), &far);
    let error = said(&sshd.client("user"));
    assert!(error.contains("no image 'x'") && error.contains("not at ssh://"), "{error}");
}
