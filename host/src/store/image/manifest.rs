//! The bytes of a manifest, as `erofs-rs` reads them.

use std::ops::{Bound, RangeBounds};

use erofs_rs::backend::Image as Backend;
use lazyroot_proto::Verified;

/// What is said of a manifest before what `erofs-rs` says.
pub(super) const DAMAGED: &str = "the manifest is damaged";

/// A manifest in memory. Not mapped: a file that shrinks under a mapping kills the process.
pub(in crate::store) struct Manifest(pub(super) Verified);

impl Backend for Manifest {
    fn get<R: RangeBounds<u64>>(&self, range: R) -> Option<&[u8]> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start.checked_add(1)?,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end.checked_add(1)?,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        self.0.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}
