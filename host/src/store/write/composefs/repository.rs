//! What all writers share: making a repository, composefs' digests as ours, and errors that say what to do.

use std::io;
use std::path::Path;

use anyhow::{Result, anyhow};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue};
use composefs::repository::{Repository, RepositoryConfig};
use lazyroot_proto::ObjectId;
use rustix::fs::CWD;
use rustix::io::Errno;

use crate::store::repository::store::Store;

/// Makes a repository: SHA-256, the default EROFS version, fs-verity not demanded of the file system.
pub(in crate::store) fn create(path: &Path) -> Result<()> {
    crate::home::private_dir(path)?;
    let config = RepositoryConfig::default().set_insecure();
    Repository::<Sha256HashValue>::init_path(CWD, path, config)?;
    Ok(())
}

pub(super) fn object_id<Hash: FsVerityHashValue>(hash: &Hash) -> ObjectId {
    hash.to_hex().parse().expect("composefs' digests are of the lengths that fs-verity knows")
}

/// One message in place of a long chain, where the system's error says it all.
pub(super) fn explain(error: anyhow::Error, store: &Store) -> anyhow::Error {
    let mut errnos = error.chain().filter_map(|cause| {
        let io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        io.or_else(|| cause.downcast_ref::<Errno>().map(|errno| errno.raw_os_error()))
    });
    let errno = errnos.next().map(Errno::from_raw_os_error);
    let full = [Errno::NOSPC, Errno::DQUOT];
    if errno.is_some_and(|errno| full.contains(&errno)) {
        return anyhow!(
            "the disk that holds the store {} is full: free some space and try again; nothing is broken",
            store.path().display()
        );
    }
    if errno == Some(Errno::ROFS) {
        return anyhow!("the store {} is on a read-only file system", store.path().display());
    }
    let denied = [Errno::ACCESS, Errno::PERM];
    if errno.is_some_and(|errno| denied.contains(&errno)) && !rustix::process::geteuid().is_root() {
        return error.context("permission denied: files of other users need root");
    }
    error
}
