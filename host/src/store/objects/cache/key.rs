//! The names of what the cache holds.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use lazyroot_proto::ObjectId;

/// One thing in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) id: ObjectId,
    pub(super) part: Part,
}

/// What of an object an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Whole,
    Leaves,
    Piece(u32),
}

impl Key {
    /// Which of `locks` locks is this one's, the same in every process.
    pub(super) fn lock_number(&self, locks: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish() % locks
    }
}
