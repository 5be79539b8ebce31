//! Where tests and benchmarks find what they work on: programs, images and kernels.
//!
//! Each input is where `make` puts it in the target folder, which is found from the test program itself; a variable
//! names another place. The programs under test are the release builds of `make build`, whatever the profile of the
//! tests: a debug `cargo test` compiles only the tests, so run `make build` after a change of the programs.

use std::env;
use std::path::PathBuf;

/// A file or folder that something else makes.
pub struct Input {
    /// The variable that names another place.
    pub variable: &'static str,
    /// Its place below the target folder; `ARCH` stands for this machine's architecture, and `*` in the file name for
    /// anything.
    place: &'static str,
    /// The command that makes it.
    command: &'static str,
}

/// The lazyroot program.
pub const LAZYROOT: Input = input("LAZYROOT_TEST_BIN", "release/lazyroot", "make build");
/// The static guest-init. Not the one beside lazyroot, where `cargo test --release` may put a dynamic one.
pub const GUEST_INIT: Input =
    input("LAZYROOT_GUEST_INIT", "guest/ARCH-unknown-linux-gnu/guest/guest-init", "make build");
/// The demo image's tree, a real Debian.
pub const ROOTFS: Input = input("LAZYROOT_TEST_ROOTFS", "demo/rootfs", "make image");
/// Debian's cloud kernel package.
pub const KERNEL_DEB: Input = input("LAZYROOT_TEST_KERNEL_DEB", "demo/linux-image-*.deb", "make image");
/// QEMU's vsock device as a program.
pub const VHOST_DEVICE_VSOCK: Input =
    input("LAZYROOT_VHOST_DEVICE_VSOCK", "tools/bin/vhost-device-vsock", "make test-tools");
/// What shares folders with QEMU's guests.
pub const VIRTIOFSD: Input = input("LAZYROOT_VIRTIOFSD", "tools/bin/virtiofsd", "make test-tools");
/// An S3 server.
pub const S3: Input = input("LAZYROOT_TEST_S3", "tools/bin/s3s-fs", "make test-tools");
/// An arm64 Debian tree.
pub const ARM64_ROOTFS: Input = input("LAZYROOT_TEST_ARM64_ROOTFS", "demo-arm64/rootfs", "make test-arm64");
/// Debian's arm64 kernel package.
pub const ARM64_KERNEL_DEB: Input =
    input("LAZYROOT_TEST_ARM64_KERNEL_DEB", "demo-arm64/linux-image-*.deb", "make test-arm64");
/// vfkit's own parser.
pub const VFKIT_PARSER: Input =
    input("LAZYROOT_TEST_VFKIT_PARSER", "tools/vfkit-parser", "make check-vfkit VFKIT_SOURCES=DIR");
/// The benchmarks' `LAZYROOT_HOME`.
pub const BENCH_HOME: Input = input("LAZYROOT_HOME", "bench/home", "make bench");
/// The benchmarks' Debian tree.
pub const BENCH_ROOTFS: Input = input("LAZYROOT_BENCH_ROOTFS", "bench/rootfs", "make bench");
/// A Debian tree with the programs that lazyroot is compared with.
pub const BENCH_PEERS: Input = input("LAZYROOT_BENCH_PEERS", "bench/peers", "make bench");
/// A file system that the benchmarks compare with.
pub const BENCH_FS: Input = input("LAZYROOT_BENCH_FS", "release/bench-fs", "make bench");
/// The init of peers' guests.
pub const BENCH_PEER_INIT: Input =
    input("LAZYROOT_BENCH_PEER_INIT", "guest/ARCH-unknown-linux-gnu/guest/lazyroot-peer-init", "make bench");
/// The folder in which cargo installs the benchmarks' tools.
pub const BENCH_TOOLS: Input = input("LAZYROOT_BENCH_TOOLS", "tools", "make bench");

const fn input(variable: &'static str, place: &'static str, command: &'static str) -> Input {
    Input { variable, place, command }
}

impl Input {
    /// Where it is.
    ///
    /// # Panics
    /// If it is not there: a test never skips itself.
    pub fn path(&self) -> PathBuf {
        let Input { variable, place, command } = self;
        self.find()
            .unwrap_or_else(|| panic!("there is no {place} in the target folder: run '{command}' or set {variable}"))
    }

    /// Where it is, if it is there. Where a variable says that it is, it is taken to be.
    pub fn find(&self) -> Option<PathBuf> {
        if let Some(path) = env::var_os(self.variable).filter(|path| !path.is_empty()) {
            return Some(path.into());
        }
        let path = target()?.join(self.place.replace("ARCH", env::consts::ARCH));
        let name = path.file_name()?.to_str()?;
        let Some((start, end)) = name.split_once('*') else { return path.exists().then_some(path) };
        let entries = path.parent()?.read_dir().ok()?.flatten().map(|entry| entry.path());
        let mut matches = entries.filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(start) && name.ends_with(end))
        });
        matches.next()
    }
}

/// The target folder that this program was built in. Cargo marks those that it makes; one that was there before has no
/// mark, and lies above the profile's folder.
fn target() -> Option<PathBuf> {
    let program = env::current_exe().ok()?;
    let marked = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let folder = program.parent()?;
    let profile = if folder.ends_with("deps") { folder.parent()? } else { folder };
    marked.or(profile.parent()).map(PathBuf::from)
}

/// Says how a test gets root, unless it has.
///
/// # Panics
/// If this process is not root's: a test never skips itself.
pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root: run 'make test', or give '--config scripts/root.toml' to 'cargo test' or 'cargo nextest run'"
    );
}
