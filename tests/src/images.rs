//! Images that several tests boot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::lazyroot::Lazyroot;
use crate::rootfs;

/// One home with the kernel and the Debian image for the tests that run at a time: importing is not what they are
/// about. It goes with the last of them.
pub fn debian() -> Arc<Lazyroot> {
    static HOME: Mutex<Weak<Lazyroot>> = Mutex::new(Weak::new());
    let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
    home.upgrade().unwrap_or_else(|| {
        let lazyroot = Arc::new(Lazyroot::default());
        lazyroot.import_kernel();
        lazyroot.import(&rootfs(), "debian");
        *home = Arc::downgrade(&lazyroot);
        lazyroot
    })
}

/// A root with no init and nothing of Debian's layout but one static program.
pub fn tiny_root() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    let place = dir.path().join("bin/busybox");
    fs::create_dir_all(dir.path().join("bin")).expect("it is ours");
    fs::copy(program("busybox"), &place).expect("busybox can be copied");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("it is ours");
    dir
}

/// A static program of this machine.
fn program(name: &str) -> PathBuf {
    let path = Path::new("/bin").join(name);
    assert!(path.exists(), "{} is missing: 'make test' installs busybox-static", path.display());
    path
}
