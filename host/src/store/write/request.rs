//! What the functions that write are asked for, and what they give back.

use lazyroot_proto::ObjectId;

use super::source::Source;
use crate::store::progress::Progress;
use crate::store::repository::store::Store;

/// An import: into which store, from where, and how.
#[derive(Clone, Copy)]
pub(in crate::store) struct ImportRequest<'a> {
    pub(in crate::store) store: &'a Store,
    pub(in crate::store) from: &'a Source,
    pub(in crate::store) rehash: Rehash,
    pub(in crate::store) progress: &'a Progress,
}

/// What an import brought.
pub(in crate::store) struct Imported {
    /// The manifest's digest.
    pub(in crate::store) id: ObjectId,
    /// The OCI configuration, if the source has one.
    pub(in crate::store) config: Option<Vec<u8>>,
}

/// What of a source that was imported before is read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rehash {
    /// Files and objects that changed since, as far as their times tell.
    #[default]
    Changed,
    /// Everything.
    All,
}

/// How a repository is locked while somebody looks for garbage.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum CollectionLock {
    /// Nothing changes: others may write.
    Shared,
    /// Nobody imports, commits or changes names.
    Exclusive,
}
