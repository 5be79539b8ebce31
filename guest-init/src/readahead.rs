//! Large files' pages, read by the kernel before a program asks for them.
//!
//! What the boot profile brings of large objects could wait here until a program reads it; but then each such read is a request,
//! for which two threads wake each other. So EROFS is made to read it at once, into its page cache, through the same
//! data layer. A program then finds it there.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};

use crate::held::Folder;
use crate::image::ImageFile;
use crate::link::Wanted;
use crate::sys;

/// Reads files of a mounted EROFS ahead.
pub struct Readahead {
    image: Arc<ImageFile>,
    /// A folder of the EROFS that is mounted from it.
    metadata: Folder,
}

impl Readahead {
    /// For the EROFS that is mounted from `image`, of which `metadata` is a folder.
    pub fn new(image: Arc<ImageFile>, metadata: Folder) -> Self {
        Self { image, metadata }
    }

    /// The file that has the object at `position`. `None` where several have it, each of which has pages of its own: which of
    /// them will be read, nobody knows. And where the kernel opens no file without its name: it may be built without
    /// `CONFIG_FHANDLE`, and wants `CAP_DAC_READ_SEARCH`.
    pub fn open(&self, position: u32) -> Option<OwnedFd> {
        sys::open_inode(&*self.metadata.get()?, self.image.inode(position)?).ok()
    }
}

/// Has the kernel read what is `wanted` of `file`, if there is memory for it; it does not wait for the bytes.
pub fn read(file: &OwnedFd, wanted: &Wanted) {
    // Best effort, as all that is ahead of need.
    let _ = fadvise(file, wanted.offset, NonZeroU64::new(wanted.len.into()), Advice::WillNeed);
}
