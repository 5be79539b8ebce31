//! A data layer being served: to the kernel through `/dev/fuse` and, where it can, io_uring.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread;

use fuser::{INodeNo, Session, SessionACL};

use crate::ahead::page_cache::Pages;
use crate::ahead::ready_layer::Ready;
use crate::ahead::scan::Scans;
use crate::content::image_file::ImageFile;
use crate::fuse::data_layer::{DataFs, IMAGE_INODE};
use crate::fuse::device::Device;
use crate::fuse::ring::Rings;
use crate::held::Folder;
use crate::objects::{LONGEST_READ, Objects};

/// Threads that answer what comes through the device. Each waits for its own reply, so this is also how many reads are in
/// flight.
const THREADS: usize = 8;

/// The least of the scheduler's priorities (nice(2)).
const LOWEST_PRIORITY: i32 = 19;

/// Serves `objects` and the `image` on an opened and mounted `/dev/fuse` descriptor in threads of its own, for what `pages`
/// is the kernel's page cache; returns the
/// handle that ends when the file system is unmounted.
///
/// # Errors
/// If the kernel does not shake hands or threads cannot be made.
pub fn serve(objects: Arc<Objects>, image: Arc<ImageFile>, pages: Arc<Pages>, device: OwnedFd) -> io::Result<Serving> {
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    // A queue of its own for every thread: they do not contend for one lock.
    config.clone_fd = true;
    let scans = Arc::<OnceLock<Scans>>::default();
    let fs = Arc::new(DataFs::new(objects.clone(), image.clone(), pages.clone(), scans.clone()));
    let rings = Arc::<OnceLock<Rings>>::default();
    let kernel = Device::new(fs, Arc::new(device.try_clone()?), rings.clone());
    let session = Session::from_fd(kernel, device, SessionACL::All, config)?;
    pages.attach(session.notifier());
    if let Some(rings) = rings.get() {
        rings.start();
    }
    let session = session.spawn()?;
    Ok(Serving { session, objects, image, pages, scans })
}

/// A data layer being served.
pub struct Serving {
    session: fuser::BackgroundSession,
    objects: Arc<Objects>,
    image: Arc<ImageFile>,
    pages: Arc<Pages>,
    scans: Arc<OnceLock<Scans>>,
}

impl Serving {
    /// From here on scans are recognised and their objects put where programs find them ahead of the program, with the
    /// help of `layer`, the root of this data layer.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn read_ahead(&self, layer: Folder, ready: Arc<Ready>) -> io::Result<()> {
        let scans = Scans::start(self.objects.clone(), self.pages.clone(), layer, ready)?;
        // There is nobody else who sets it.
        let _ = self.scans.set(scans);
        Ok(())
    }

    /// Puts the manifest, as the image file has it, into the page cache, in a thread that gives way to all others. Until it
    /// is there EROFS asks for every block by itself, which a walk through the whole tree would feel.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn store_manifest(&self) -> io::Result<()> {
        let (image, pages) = (self.image.clone(), self.pages.clone());
        let store = move || {
            // Of this thread alone, on Linux. Best effort.
            let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
            let len = image.manifest_len();
            for offset in (0..len).step_by(LONGEST_READ as usize) {
                let mut bytes = vec![0; (len - offset).min(LONGEST_READ.into()) as usize];
                let read = image.read_manifest(&mut bytes, offset);
                if read.is_err() || !pages.store_at(INodeNo(IMAGE_INODE), offset, &bytes) {
                    break;
                }
            }
        };
        thread::Builder::new().name("manifest".into()).spawn(store).map(drop)
    }

    /// Waits until the file system is unmounted.
    pub fn wait(self) -> io::Result<()> {
        let ended = self.session.join();
        self.objects.recorder().tell(self.objects.link());
        self.objects.recorder().close();
        ended
    }

    /// The objects that are served.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }
}
