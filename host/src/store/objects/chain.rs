//! Objects from the local repository, else from the cache, else from upstreams.

use std::fs::File;
use std::sync::Arc;

use lazyroot_proto::Verified;

use super::cache::CachedUpstreams;
use super::local::LocalObjects;
use super::source::{Object, ObjectError, ObjectSource};

/// The repository first: what is there needs no copy in the cache.
pub(in crate::store) struct Chain {
    pub(in crate::store) local: Arc<LocalObjects>,
    pub(in crate::store) remote: Arc<CachedUpstreams>,
}

impl Chain {
    /// Asks the upstreams for what the repository could not give.
    fn or_remote<T>(
        &self,
        object: &Object,
        local: Result<T, ObjectError>,
        remote: impl FnOnce(&CachedUpstreams) -> Result<T, ObjectError>,
    ) -> Result<T, ObjectError> {
        match local {
            Ok(found) => Ok(found),
            Err(ObjectError::NotFound(_)) => remote(&self.remote),
            Err(error) => {
                tracing::warn!("{error}; asking elsewhere for {}", object.id);
                remote(&self.remote)
            }
        }
    }
}

impl ObjectSource for Chain {
    fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        let local = self.local.read(object, offset, buf);
        self.or_remote(object, local, |remote| remote.read(object, offset, buf))
    }

    fn read_cached(&self, object: &Object, offset: u64, buf: &mut [u8]) -> bool {
        self.local.read_cached(object, offset, buf) || self.remote.read_cached(object, offset, buf)
    }

    fn cached_file(&self, object: &Object, offset: u64) -> Option<Arc<File>> {
        self.local.cached_file(object, offset)
    }

    fn leaves(&self, object: &Object) -> Result<Verified, ObjectError> {
        self.or_remote(object, self.local.leaves(object), |remote| remote.leaves(object))
    }

    fn read_leaves(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        let local = self.local.read_leaves(object, offset, buf);
        self.or_remote(object, local, |remote| remote.read_leaves(object, offset, buf))
    }
}
