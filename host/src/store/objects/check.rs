//! Objects of the local repository, read and checked against their digests.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use lazyroot_proto::ObjectId;

use super::local::LocalObjects;
use super::source::ObjectError;
use crate::store::progress::Progress;

/// Checks objects on all processors. The damaged ones and why, and how many bytes were read.
pub(in crate::store) fn check_objects(
    local: &LocalObjects,
    objects: &[(ObjectId, Option<u64>)],
    progress: &Progress,
) -> (BTreeMap<ObjectId, String>, u64) {
    let bar = progress.items("checking objects".to_owned(), Some(objects.len() as u64));
    let next = AtomicUsize::new(0);
    let found = Mutex::new((BTreeMap::new(), 0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((id, size)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let checked = check_object(local, id, *size);
                    bar.inc(1);
                    let mut found = found.lock().expect("no panic under the lock");
                    match checked {
                        Ok(bytes) => found.1 += bytes,
                        Err(why) => drop(found.0.insert(*id, why)),
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    found.into_inner().expect("no panic under the lock")
}

/// An object's size if its content matches its id, else what is wrong.
pub(in crate::store) fn check_object(local: &LocalObjects, id: &ObjectId, size: Option<u64>) -> Result<u64, String> {
    match local.check(id) {
        Ok(found) if size.is_none_or(|size| size == found) => Ok(found),
        // Its content matches its id, so the index that claims another size is wrong.
        Ok(found) => Err(format!("it has {found} bytes and the manifest says {}", size.unwrap_or_default())),
        Err(ObjectError::NotFound(_)) => Err("it is missing".to_owned()),
        Err(ObjectError::Corrupt(_)) => Err("its content does not match its digest".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
