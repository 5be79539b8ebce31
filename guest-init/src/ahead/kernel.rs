//! Large files' pages, read by the kernel before a program asks for them.
//!
//! What the boot profile brings of large objects could wait here until a program reads it; but then each such read is a request,
//! for which two threads wake each other. So EROFS is made to read it at once, into its page cache, through the same
//! data layer. A program then finds it there.
//!
//! That is done in a thread of its own, for which nobody waits: opening a file, and reading ahead where many reads are under
//! way already, may have to wait for those who answer the kernel, and they for what the boot profile brings.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rustix::fs::{Advice, fadvise};

use crate::ahead::stores::Stores;
use crate::content::image_file::ImageFile;
use crate::layer_guard::LayerFolder;
use crate::link::ObjectRange;
use crate::{sys, threads};

/// What the kernel reads ahead at a time at least, in bytes: its default. It passes over what goes beyond its limit.
const WINDOW: u64 = 128 << 10;

/// Has the kernel read files of a mounted EROFS ahead.
pub struct KernelReadahead {
    /// Where the files' data is kept.
    pub stores: Arc<Stores>,
    /// What the EROFS is mounted from.
    pub image: Arc<ImageFile>,
    /// A folder of it, opened for more than its path, as open_by_handle_at(2) wants it.
    pub metadata: LayerFolder,
    /// Bytes that may be read ahead in all: the kernel drops pages when it needs the memory, so more of them would only be
    /// read twice.
    pub limit: u64,
}

impl KernelReadahead {
    /// Has the kernel read these `ranges`, which are here, as they arrive, in a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start(mut self, ranges: Receiver<Vec<ObjectRange>>) -> std::io::Result<()> {
        let read = move || ranges.into_iter().flatten().for_each(|range| self.read(&range));
        threads::start("readahead", read).map(drop)
    }

    fn read(&mut self, range: &ObjectRange) {
        let bytes = u64::from(range.len);
        let file = if bytes <= self.limit { self.open(range.extent.position) } else { None };
        match file.filter(|_| self.stores.large.give_to_kernel(range)) {
            Some(file) => {
                self.limit -= bytes;
                read(&file, range.offset, bytes);
            }
            None => self.stores.content.recorder().watch_profile(bytes),
        }
    }

    /// The file that has the object at `position`. `None` where several have it, each of which has pages of its own: which of
    /// them will be read, nobody knows. And where the kernel opens no file without its name: it may be built without
    /// `CONFIG_FHANDLE`, and wants `CAP_DAC_READ_SEARCH`.
    fn open(&self, position: u32) -> Option<OwnedFd> {
        sys::open_inode(&*self.metadata.get()?, self.image.inode(position)?).ok()
    }
}

/// Has the kernel read `len` bytes of `file` from `offset` on, if there is memory for them.
fn read(file: &OwnedFd, offset: u64, len: u64) {
    // The first call reads all that the limit allows, which is nearly always all there is.
    for done in (0..len).step_by(WINDOW as usize) {
        // Best effort, as all that is ahead of need.
        let _ = fadvise(file, offset + done, NonZeroU64::new(len - done), Advice::WillNeed);
    }
}
