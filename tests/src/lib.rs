//! What the end-to-end tests and benchmarks share: what `make test` hands them, a private lazyroot to play
//! with, and an exact comparison of trees.

pub mod awkward;
pub mod bench;
pub mod data;
pub mod far_end;
pub mod frames;
pub mod fuse_uring;
pub mod images;
pub mod imports;
pub mod lazyroot;
pub mod mounts;
pub mod oci;
pub mod s3;
pub mod stores;
pub mod tree;
pub mod vfkit;
pub mod vms;
pub mod wait;

use std::path::PathBuf;

/// A path that `make test` sets in the environment.
///
/// # Panics
/// If it is not set: a test never skips itself.
pub fn given(name: &str) -> PathBuf {
    match std::env::var_os(name) {
        Some(path) => path.into(),
        None => panic!("{name} is not set: run the tests with 'make test'"),
    }
}

/// A real Debian root, made by `make test` with mmdebstrap.
pub fn rootfs() -> PathBuf {
    given("LAZYROOT_TEST_ROOTFS")
}

/// What a program said.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Debian's cloud kernel package, downloaded by `make test`.
pub fn kernel_deb() -> PathBuf {
    given("LAZYROOT_TEST_KERNEL_DEB")
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
