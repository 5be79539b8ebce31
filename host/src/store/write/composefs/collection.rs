//! What garbage collection needs of composefs: its lock, and the objects that OCI images need.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use composefs::repository::Repository;
use lazyroot_proto::{Algorithm, ObjectId};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::repository::{explain, object_id};
use crate::store::repository::store::Store;
use crate::store::write::request::CollectionLock;

/// How long a collection waits for an import, and how often it looks.
const COLLECTION_WAIT: Duration = Duration::from_secs(600);
const COLLECTION_POLL: Duration = Duration::from_millis(100);

/// Runs `collect` while nobody imports or changes names, with what OCI images need.
pub(in crate::store) fn locked_for_collection<T>(
    store: &Store,
    lock: CollectionLock,
    collect: impl FnOnce(HashSet<ObjectId>) -> Result<T>,
) -> Result<T> {
    store.ensure_changeable()?;
    let collected = match store.algorithm() {
        Algorithm::Sha256 => locked_with::<Sha256HashValue, T>(store, lock, collect),
        Algorithm::Sha512 => locked_with::<Sha512HashValue, T>(store, lock, collect),
    };
    collected.map_err(|error| explain(error, store))
}

fn locked_with<Hash: FsVerityHashValue, T>(
    store: &Store,
    lock: CollectionLock,
    collect: impl FnOnce(HashSet<ObjectId>) -> Result<T>,
) -> Result<T> {
    // Opened, it holds the shared lock: enough for who only looks.
    let repository = Repository::<Hash>::open_path(CWD, store.path())?;
    if lock == CollectionLock::Exclusive {
        repository.ensure_writable()?;
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(repository.repo_fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if begin.elapsed() < COLLECTION_WAIT => {
                    if begin.elapsed() < COLLECTION_POLL {
                        tracing::warn!("waiting for an import, or another program that uses the store, to end");
                    }
                    std::thread::sleep(COLLECTION_POLL);
                }
                Err(Errno::WOULDBLOCK) => bail!("an import, or another program that uses the store, did not end"),
                Err(error) => return Err(error).context("cannot lock the store"),
            }
        }
    }
    collect(live_streams(&repository)?)
}

/// What the named streams (OCI images) of a repository need, as composefs' own garbage collection finds it.
fn live_streams<Hash: FsVerityHashValue>(repository: &Repository<Hash>) -> Result<HashSet<ObjectId>> {
    let mut objects = HashSet::new();
    // A stream names those that it needs by their objects; their links are what names them to the repository.
    let mut by_object = HashMap::new();
    let dir =
        match rustix::fs::openat(repository.repo_fd(), "streams", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(objects),
            dir => dir.context("cannot open the repository's streams")?,
        };
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && let Ok(Some(id)) = repository.has_stream(name)
        {
            by_object.insert(id, name.to_owned());
        }
    }
    let refs = repository.list_stream_refs("").context("cannot list the repository's OCI images")?;
    let mut todo: Vec<String> = refs.into_iter().map(|(_, stream)| stream).collect();
    let mut walked = HashSet::new();
    while let Some(name) = todo.pop() {
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        if !walked.insert(name.clone()) {
            continue;
        }
        let Some(id) = repository.has_stream(&name)? else { continue };
        objects.insert(object_id(&id));
        let mut stream = repository.open_stream(&name, None, None).with_context(|| {
            format!("cannot tell what the OCI stream {name} needs, so nothing is removed; import its image again")
        })?;
        stream.get_object_refs(|id| {
            objects.insert(object_id(id));
        })?;
        for (_, id) in stream.iter_named_refs() {
            objects.insert(object_id(id));
            todo.extend(by_object.get(id).cloned());
        }
    }
    Ok(objects)
}
