//! Folders of an image's layers, open only as long as the image is mounted.
//!
//! An open folder keeps its mount alive. So the threads that work in a layer borrow its folder each time, and as soon as the
//! image is unmounted there is nothing more to borrow.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags, inotify};

use crate::threads;

/// A layer's folder, as long as a [`LayerGuard`] keeps it open.
#[derive(Clone)]
pub struct LayerFolder(Weak<OwnedFd>);

impl LayerFolder {
    /// The folder, for a moment; `None` once the image is unmounted.
    pub fn get(&self) -> Option<Arc<OwnedFd>> {
        self.0.upgrade()
    }
}

/// Keeps folders of layers open. They are closed when this is dropped.
#[derive(Default)]
pub struct LayerGuard(Vec<Arc<OwnedFd>>);

impl LayerGuard {
    /// Opens the folder at `path` in the way of `flags`, and keeps it open.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&mut self, path: &Path, flags: OFlags) -> io::Result<LayerFolder> {
        let folder = rustix::fs::open(path, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let folder = Arc::new(folder);
        let borrowed = LayerFolder(Arc::downgrade(&folder));
        self.0.push(folder);
        Ok(borrowed)
    }

    /// Keeps the folders open until what is mounted at `target` is unmounted.
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
        threads::start("unmounted", wait).map(drop)
    }
}
