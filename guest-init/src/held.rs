//! Folders of an image's layers, open only as long as the image is mounted.
//!
//! Whoever has a folder of a mount open keeps it mounted. So whoever works in a layer borrows its folder each time, and as
//! soon as the image is unmounted there is nothing more to borrow.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::{io, thread};

use rustix::fs::{Mode, OFlags, inotify};

/// A layer's folder, while it is held.
#[derive(Clone)]
pub struct Folder(Weak<OwnedFd>);

impl Folder {
    /// The folder, for a moment; `None` once the image is unmounted.
    pub fn get(&self) -> Option<Arc<OwnedFd>> {
        self.0.upgrade()
    }
}

/// Folders that are held. They are closed when this is dropped.
#[derive(Default)]
pub struct Held(Vec<Arc<OwnedFd>>);

impl Held {
    /// Opens the folder at `path` in the way of `flags`, and holds it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&mut self, path: &Path, flags: OFlags) -> io::Result<Folder> {
        let folder = rustix::fs::open(path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let folder = Arc::new(folder);
        let borrowed = Folder(Arc::downgrade(&folder));
        self.0.push(folder);
        Ok(borrowed)
    }

    /// Holds the folders until what is mounted at `target` is unmounted.
    ///
    /// # Errors
    /// If the kernel has no inotify(7) instance left, or the system no thread. The folders are closed then.
    pub fn until_unmounted(self, target: &Path) -> io::Result<()> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, target, inotify::WatchFlags::DELETE_SELF)?;
        let wait = move || {
            // The image's root is never deleted: what comes is IN_UNMOUNT, when its last mount is gone.
            let _ = rustix::io::read(&watch, &mut [0; 1024]);
            drop(self);
        };
        thread::Builder::new().name("unmounted".into()).spawn(wait).map(drop)
    }
}
