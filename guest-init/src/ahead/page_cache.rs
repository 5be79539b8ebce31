//! The kernel's page cache of the data layer: which objects it knows, and content put there before it asks.
//!
//! A file whose inode the kernel knows and whose pages are in its cache is read without a single request. That costs
//! no memory that the kernel could not take back: what it drops, it asks for again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::{INodeNo, Notifier};
use lazyroot_proto::verified::Verified;

use crate::content::image_file::ImageBytes;

/// Inodes of objects begin here; those below are the root and its 256 directories. The image file's is far above.
pub const FIRST_OBJECT: u64 = 2 + 256;

/// The page cache's side of one data layer.
pub struct PageCache {
    notifier: OnceLock<Notifier>,
    /// A bit for every object: whether the kernel has its inode, so that pages can be given to it.
    inodes: Box<[AtomicU64]>,
}

impl PageCache {
    /// For an image of so many objects. The kernel knows none of them.
    pub fn new(objects: usize) -> Self {
        let words = objects.div_ceil(u64::BITS as usize);
        Self { notifier: OnceLock::new(), inodes: std::iter::repeat_with(AtomicU64::default).take(words).collect() }
    }

    /// From here on content can be stored through `notifier`.
    pub fn attach(&self, notifier: Notifier) {
        // Once per session, and there is one session.
        let _ = self.notifier.set(notifier);
    }

    /// The kernel is told of the inode of the object at this position, if not this moment then the next.
    pub fn insert_inode(&self, position: u32) {
        self.word(position).fetch_or(bit(position), Ordering::Relaxed);
    }

    /// The kernel has forgotten that inode.
    pub fn remove_inode(&self, position: u32) {
        self.word(position).fetch_and(!bit(position), Ordering::Relaxed);
    }

    /// Whether the kernel has the inode, and so perhaps the content, of the object at this position.
    pub fn knows(&self, position: u32) -> bool {
        self.word(position).load(Ordering::Relaxed) & bit(position) != 0
    }

    /// Puts the object's bytes from `offset` (in bytes, a multiple of the page size) on into the page cache; all
    /// the object's bytes from there, or whole pages. `false` if the kernel has no use for them.
    ///
    /// Waits for a READ of the same pages that is being answered: never call this from what that answer waits for.
    pub fn store(&self, position: u32, offset: u64, data: &Verified) -> bool {
        self.knows(position) && self.store_at(inode(position), offset, data)
    }

    /// Puts `bytes`, whole pages of them, at `offset` of the image file, which has this `inode`, as [`PageCache::store`] does.
    /// `false` if the kernel does not know the file.
    pub fn store_image(&self, inode: INodeNo, offset: u64, bytes: &ImageBytes) -> bool {
        self.store_at(inode, offset, bytes)
    }

    fn store_at(&self, inode: INodeNo, offset: u64, bytes: &[u8]) -> bool {
        self.notifier.get().is_some_and(|notifier| notifier.store(inode, offset, bytes).is_ok())
    }

    fn word(&self, position: u32) -> &AtomicU64 {
        &self.inodes[(position / u64::BITS) as usize]
    }
}

fn bit(position: u32) -> u64 {
    1 << (position % u64::BITS)
}

/// The inode of the object at this position of the index.
pub fn inode(position: u32) -> INodeNo {
    INodeNo(FIRST_OBJECT + u64::from(position))
}

/// The position of the object with this inode; `None` for a directory or the image file.
pub fn position(inode: u64) -> Option<u32> {
    u32::try_from(inode.checked_sub(FIRST_OBJECT)?).ok()
}
