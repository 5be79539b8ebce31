//! A data layer being served: to the kernel through `/dev/fuse` and, where it can, io_uring.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Session, SessionACL};

use crate::ahead::Ahead;
use crate::ahead::runs::LONGEST_READ;
use crate::content::Content;
use crate::content::image_file::ImageFile;
use crate::fuse::data_layer::{DataLayer, IMAGE_INODE};
use crate::fuse::device::Device;
use crate::fuse::ring::Rings;
use crate::threads;

/// Threads that answer what comes through the device. Each waits for its own reply, so this is also how many reads are in
/// flight.
const THREADS: usize = 8;

/// The least of the scheduler's priorities (nice(2)).
const LOWEST_PRIORITY: i32 = 19;

/// Serves `content` and the `image` on an opened and mounted `/dev/fuse` descriptor in threads of its own; returns the
/// handle that ends when the file system is unmounted.
///
/// # Errors
/// If the kernel does not shake hands or threads cannot be made.
pub fn serve(content: Arc<Content>, ahead: Arc<Ahead>, image: Arc<ImageFile>, device: OwnedFd) -> io::Result<Serving> {
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    // A queue of its own for every thread: they do not contend for one lock.
    config.clone_fd = true;
    let layer = Arc::new(DataLayer::new(content.clone(), ahead.clone(), image.clone()));
    let rings = Arc::<OnceLock<Rings>>::default();
    let kernel = Device::new(layer, Arc::new(device.try_clone()?), rings.clone());
    let session = Session::from_fd(kernel, device, SessionACL::All, config)?;
    ahead.page_cache().attach(session.notifier());
    if let Some(rings) = rings.get() {
        rings.start();
    }
    let session = session.spawn()?;
    Ok(Serving { session, content, ahead, image })
}

/// A data layer being served.
pub struct Serving {
    session: fuser::BackgroundSession,
    content: Arc<Content>,
    ahead: Arc<Ahead>,
    image: Arc<ImageFile>,
}

impl Serving {
    /// Puts the manifest, as the image file has it, into the page cache, in a thread that gives way to all others. Until it
    /// is there EROFS asks for every block by itself, which a walk through the whole tree would feel.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn store_manifest(&self) -> io::Result<()> {
        let (image, ahead) = (self.image.clone(), self.ahead.clone());
        let store = move || {
            // Of this thread alone, on Linux. Best effort.
            let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
            let len = image.manifest_len();
            for offset in (0..len).step_by(LONGEST_READ as usize) {
                let Ok(bytes) = image.read_manifest(offset, (len - offset).min(LONGEST_READ.into()) as usize) else {
                    break;
                };
                if !ahead.page_cache().store_image(INodeNo(IMAGE_INODE), offset, &bytes) {
                    break;
                }
            }
        };
        threads::start("manifest", store).map(drop)
    }

    /// Waits until the file system is unmounted.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.session.join();
        self.content.recorder().flush();
        self.content.recorder().close();
        ended
    }

    /// The objects that are served.
    pub fn content(&self) -> &Arc<Content> {
        &self.content
    }
}
