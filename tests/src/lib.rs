//! What the end-to-end tests and benchmarks share: where their inputs are, a private lazyroot to play with, and an
//! exact comparison of trees.
//!
//! `make build image` makes what `cargo test` and `cargo nextest run` need; `make test-tools` adds the programs that
//! some tests want besides. See [`inputs`] for which programs are tested, and for tests that need root.

pub mod awkward;
pub mod bench;
pub mod data;
pub mod far_end;
pub mod frames;
pub mod fuse_uring;
pub mod images;
pub mod imports;
pub mod inputs;
pub mod lazyroot;
pub mod mounts;
pub mod oci;
pub mod programs;
pub mod s3;
pub mod stores;
pub mod tree;
pub mod vfkit;
pub mod vms;
pub mod wait;

use std::path::PathBuf;

/// A real Debian tree, made by `make image`. Only root can read all of it.
pub fn rootfs() -> PathBuf {
    inputs::need_root();
    inputs::ROOTFS.path()
}

/// What a program said.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Debian's cloud kernel package, downloaded by `make image`.
pub fn kernel_deb() -> PathBuf {
    inputs::KERNEL_DEB.path()
}

/// A folder of a test's own, removed when dropped.
pub fn temporary() -> tempfile::TempDir {
    tempfile::TempDir::with_prefix("lr").expect("a folder for temporary files")
}

/// Runs a program of a Debian package; it must succeed.
pub fn run_program(program: &str, package: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: apt-get install {package}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
}
