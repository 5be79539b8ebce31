//! Images that several tests boot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::lazyroot::Lazyroot;
use crate::rootfs;

/// A home that the tests that run at a time share: importing is not what they are about. It goes with the last of them.
pub struct Shared(Mutex<Weak<Lazyroot>>);

impl Shared {
    /// None yet.
    pub const fn empty() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    /// The home, filled by the first who asks.
    pub fn get(&self, fill: impl FnOnce(&Lazyroot)) -> Arc<Lazyroot> {
        let mut home = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        home.upgrade().unwrap_or_else(|| {
            let lazyroot = Arc::new(Lazyroot::default());
            lazyroot.import_kernel();
            fill(&lazyroot);
            *home = Arc::downgrade(&lazyroot);
            lazyroot
        })
    }
}

/// A home with the kernel and the Debian image.
pub fn debian() -> Arc<Lazyroot> {
    static HOME: Shared = Shared::empty();
    HOME.get(|lazyroot| lazyroot.import(&rootfs(), "debian"))
}

/// The same for one test alone, which looks at what runs or lies there.
pub fn debian_of_its_own() -> Lazyroot {
    let lazyroot = Lazyroot::default();
    lazyroot.import_kernel();
    lazyroot.import(&rootfs(), "debian");
    lazyroot
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
    assert!(path.exists(), "{} is missing: 'make test-tools' installs it", path.display());
    path
}
