//! Objects as files of a composefs repository: `objects/ab/cdef...`.
//!
//! Reading needs nothing of composefs but that layout, so this file also serves on systems where the composefs
//! crates do not compile, and repositories of either hash.
//!
//! The hot path is [`ObjectSource::read_cached`]: the server calls it on the threads that must not wait, and an
//! answer of `false` costs a trip to another thread. Opening a small object takes about as long as reading it,
//! and small objects are read once, so only the files of objects read in several pieces stay open.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use lazyroot_proto::verity::LeafHasher;
use lazyroot_proto::{ObjectId, Unverified, Verified};
use rustix::fs::{Mode, OFlags};

use super::lru::WeightedLru;
use super::nowait;
use super::source::{Object, ObjectError, ObjectSource, copy_nodes};
use crate::store::files::Files;

/// A read that starts at the object's beginning and is shorter than this is taken for a whole small object,
/// whose file is not kept open.
const WORTH_KEEPING_OPEN: usize = 128 << 10;

/// Open files kept per repository: far below the usual limit of 1024 per process.
const OPEN_FILES: usize = 128;

/// Memory for leaves in bytes: those of 4 GiB of objects under SHA-256.
const LEAVES_MEMORY: usize = 32 << 20;

/// Files of leaves that are more than that, kept open.
const LEAVES_FILES: usize = 16;

/// Leaves of smaller objects are computed each time: hashing them (about 1 ms) is cheaper than one more file.
const WORTH_WRITING: u64 = 256 << 10;

/// How much of an object is in memory at a time while its leaves are computed.
const CHUNK: usize = 1 << 20;

/// Locks under which leaves are computed, chosen by the id: enough that sessions rarely wait for each other,
/// and two sessions that want the same leaves do not compute them twice.
const LEAF_LOCKS: usize = 64;

/// The objects of a composefs repository on this machine.
pub struct LocalObjects {
    objects: OwnedFd,
    files: Files,
    open: Mutex<WeightedLru<Arc<File>>>,
    leaves: Mutex<WeightedLru<Verified>>,
    /// Files of leaves that are too many for memory, verified when they were opened.
    leaves_files: Mutex<WeightedLru<Arc<File>>>,
    computing: Vec<Mutex<()>>,
}

impl LocalObjects {
    /// The objects of the repository at `path`.
    ///
    /// # Errors
    /// If its `objects` folder cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let objects = path.join("objects");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let objects = rustix::fs::open(&objects, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", objects.display()))?;
        Ok(Self {
            objects,
            files: Files::new(path),
            open: Mutex::new(WeightedLru::new(OPEN_FILES)),
            leaves: Mutex::new(WeightedLru::new(LEAVES_MEMORY)),
            leaves_files: Mutex::new(WeightedLru::new(LEAVES_FILES)),
            computing: std::iter::repeat_with(Mutex::default).take(LEAF_LOCKS).collect(),
        })
    }

    /// The object's size on disk in bytes.
    pub fn size(&self, id: &ObjectId) -> Result<u64, ObjectError> {
        let stat = rustix::fs::statat(&self.objects, id.object_path(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| object_error(*id, errno.into()))?;
        Ok(stat.st_size.max(0) as u64)
    }

    /// The object's file, opened now unless it was kept open.
    fn file(&self, id: &ObjectId, keep: Keep) -> Result<Arc<File>, ObjectError> {
        if let Some(file) = self.kept(id, keep) {
            return Ok(file);
        }
        let file = rustix::fs::openat(&self.objects, id.object_path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| object_error(*id, errno.into()))?;
        Ok(self.keep(id, file.into(), keep))
    }

    fn kept(&self, id: &ObjectId, keep: Keep) -> Option<Arc<File>> {
        match keep {
            Keep::Open => self.open.lock().unwrap_or_else(PoisonError::into_inner).get(id),
            Keep::Closed => None,
        }
    }

    fn keep(&self, id: &ObjectId, file: File, keep: Keep) -> Arc<File> {
        let file = Arc::new(file);
        if keep == Keep::Open {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(*id, 1, file.clone());
        }
        file
    }

    /// Closes the file of an object that turned out damaged, so that a repaired one is found.
    fn forget(&self, id: &ObjectId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The leaves as they were written before, if they are still those of `id`.
    fn stored_leaves(&self, id: &ObjectId, name: &str, size: u64) -> Option<Verified> {
        Unverified::from(self.files.read(name).ok()?).verify_level(id, size, 0).ok()
    }

    /// Reads all of an object. Its size in bytes, if its content matches its id.
    pub(in crate::store) fn check(&self, id: &ObjectId) -> Result<u64, ObjectError> {
        let file = self.file(id, Keep::Closed)?;
        self.compute_leaves(id, &file)?;
        Ok(file.metadata().map_err(|error| object_error(*id, error))?.len())
    }

    fn compute_leaves(&self, id: &ObjectId, file: &File) -> Result<Verified, ObjectError> {
        let mut hasher = LeafHasher::new(id.algorithm());
        let size = file.metadata().map_err(|error| object_error(*id, error))?.len();
        // Most objects are small.
        let mut chunk = vec![0; size.clamp(1, CHUNK as u64) as usize];
        let mut offset = 0;
        loop {
            match file.read_at(&mut chunk, offset) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&chunk[..read]);
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(object_error(*id, error)),
            }
        }
        hasher.verify(id).map_err(|_| ObjectError::Corrupt(*id))
    }
}

/// Whether an object's file stays open after a read.
#[derive(Clone, Copy, PartialEq)]
enum Keep {
    Open,
    Closed,
}

impl Keep {
    /// The choice for a read of `len` bytes at `offset`.
    fn for_read(offset: u64, len: usize) -> Self {
        if offset > 0 || len >= WORTH_KEEPING_OPEN { Keep::Open } else { Keep::Closed }
    }
}

impl ObjectSource for LocalObjects {
    fn read(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        let id = &object.id;
        let file = self.file(id, Keep::for_read(offset, buf.len()))?;
        file.read_exact_at(buf, offset).map_err(|error| {
            self.forget(id);
            match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    ObjectError::Short { id: *id, offset, end: offset.saturating_add(buf.len() as u64) }
                }
                _ => object_error(*id, error),
            }
        })
    }

    fn read_cached(&self, object: &Object, offset: u64, buf: &mut [u8]) -> bool {
        let id = &object.id;
        let keep = Keep::for_read(offset, buf.len());
        let file = self.kept(id, keep).or_else(|| {
            let file = nowait::open(&self.objects, id.object_path())?;
            Some(self.keep(id, file, keep))
        });
        file.is_some_and(|file| nowait::read_exact_at(&file, buf, offset))
    }

    fn cached_file(&self, object: &Object, offset: u64) -> Option<Arc<File>> {
        self.kept(&object.id, Keep::Open).filter(|file| nowait::read_exact_at(file, &mut [0], offset))
    }

    fn leaves(&self, object: &Object) -> Result<Verified, ObjectError> {
        let id = &object.id;
        let known = || self.leaves.lock().unwrap_or_else(PoisonError::into_inner).get(id);
        if let Some(leaves) = known() {
            return Ok(leaves);
        }
        let shard = usize::from(id.as_bytes()[0]) % LEAF_LOCKS;
        let _computing = self.computing[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaves) = known() {
            return Ok(leaves);
        }
        let file = self.file(id, Keep::Closed)?;
        let size = file.metadata().map_err(|error| object_error(*id, error))?.len();
        let name = leaves_name(id);
        let leaves = match self.stored_leaves(id, &name, size) {
            Some(leaves) => leaves,
            None => {
                let leaves = self.compute_leaves(id, &file).inspect_err(|_| self.forget(id))?;
                if size >= WORTH_WRITING
                    && let Err(error) = self.files.write(&name, &leaves)
                {
                    tracing::debug!("leaves of {id} stay in memory: {error}");
                }
                leaves
            }
        };
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner).insert(*id, leaves.len(), leaves.clone());
        Ok(leaves)
    }

    fn read_leaves(&self, object: &Object, offset: u64, buf: &mut [u8]) -> Result<(), ObjectError> {
        let id = &object.id;
        let files = || self.leaves_files.lock().unwrap_or_else(PoisonError::into_inner);
        let known = files().get(id);
        if let Some(file) = known {
            return file.read_exact_at(buf, offset).map_err(|error| object_error(*id, error));
        }
        let leaves = self.leaves(object)?;
        if leaves.len() > LEAVES_MEMORY
            && let Ok(file) = File::open(self.files.path(&leaves_name(id)))
        {
            files().insert(*id, 1, file.into());
        }
        copy_nodes(object, &leaves, offset, buf)
    }
}

/// The file of an object's leaves, below lazyroot's folder.
fn leaves_name(id: &ObjectId) -> String {
    format!("leaves/{}", id.object_path())
}

/// What an error of the system means for an object.
fn object_error(id: ObjectId, error: io::Error) -> ObjectError {
    match error.kind() {
        io::ErrorKind::NotFound => ObjectError::NotFound(id),
        // Objects hard-linked from containers-storage keep the mode and owner of the file there.
        io::ErrorKind::PermissionDenied => ObjectError::Io {
            id,
            error: io::Error::new(
                error.kind(),
                format!(
                    "{error}: its file belongs to another user (it may be hard-linked from containers-storage); \
                     run lazyroot as that user or root, or import the image into a store of your own"
                ),
            ),
        },
        _ => ObjectError::Io { id, error },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use lazyroot_proto::{Algorithm, verity};

    use super::*;

    /// A repository's folder with these objects in it.
    fn repository(objects: &[&[u8]]) -> (tempfile::TempDir, LocalObjects, Vec<Object>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("objects")).unwrap();
        let objects: Vec<_> = objects.iter().map(|data| (object(Algorithm::Sha256, data), data)).collect();
        for (object, data) in &objects {
            let path = object_file(dir.path(), object);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        }
        let source = LocalObjects::open(dir.path()).unwrap();
        (dir, source, objects.into_iter().map(|(object, _)| object).collect())
    }

    fn object(algorithm: Algorithm, data: &[u8]) -> Object {
        Object { id: verity::digest(algorithm, data), size: data.len() as u64 }
    }

    fn object_file(dir: &Path, object: &Object) -> PathBuf {
        dir.join("objects").join(object.id.object_path())
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn a_read_fills_the_buffer_or_fails() {
        let data = pattern(700_000);
        let (_dir, source, objects) = repository(&[&data, b""]);
        for (offset, len) in [(0, 700_000), (0, 1), (699_999, 1), (4096, 300_000), (700_000, 0)] {
            let mut buf = vec![0; len];
            source.read(&objects[0], offset, &mut buf).unwrap();
            assert!(buf == data[offset as usize..][..len], "{len} bytes at {offset}");
        }
        for (offset, len) in [(0, 700_001), (699_999, 2), (700_000, 1), (u64::from(u32::MAX), 1)] {
            let error = source.read(&objects[0], offset, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, ObjectError::Short { .. }), "{len} bytes at {offset}: {error}");
        }
        source.read(&objects[1], 0, &mut []).unwrap();
        let absent = object(Algorithm::Sha512, b"absent");
        assert!(matches!(source.read(&absent, 0, &mut [0]), Err(ObjectError::NotFound(id)) if id == absent.id));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_cached_read_fills_the_buffer_or_declines() {
        let data = pattern(700_000);
        let (_dir, source, objects) = repository(&[&data]);
        // Just written, so in memory; the first ordinary read brings the path into the dentry cache too.
        source.read(&objects[0], 0, &mut [0; 10]).unwrap();
        for (offset, len) in [(0, 700_000), (5000, 400_000), (699_000, 1000), (0, 64)] {
            let mut buf = vec![0; len];
            assert!(source.read_cached(&objects[0], offset, &mut buf), "{len} bytes at {offset} are in memory");
            assert!(buf == data[offset as usize..][..len]);
        }
        assert!(!source.read_cached(&objects[0], 699_999, &mut [0; 2]), "beyond the end");
        assert!(!source.read_cached(&object(Algorithm::Sha256, b"absent"), 0, &mut [0]));
    }

    #[test]
    fn leaves_are_verified_written_and_read_back() {
        let (small, large) = (pattern(5000), pattern(400_000));
        let (dir, source, objects) = repository(&[&small, &large]);
        assert_eq!(*source.leaves(&objects[0]).unwrap(), verity::leaves(Algorithm::Sha256, &small));
        let expected = verity::leaves(Algorithm::Sha256, &large);
        assert_eq!(*source.leaves(&objects[1]).unwrap(), expected);
        let stored = dir.path().join("lazyroot/leaves").join(objects[1].id.object_path());
        assert_eq!(fs::read(&stored).unwrap(), expected);
        // A damaged file is recognised and replaced.
        fs::write(&stored, pattern(expected.len())).unwrap();
        let again = LocalObjects::open(dir.path()).unwrap();
        assert_eq!(*again.leaves(&objects[1]).unwrap(), expected);
        assert_eq!(fs::read(&stored).unwrap(), expected);
        assert_eq!(fs::read_dir(dir.path().join("lazyroot/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn leaves_of_a_damaged_object_are_refused() {
        let large = pattern(400_000);
        let (dir, source, objects) = repository(&[&large]);
        let path = object_file(dir.path(), &objects[0]);
        fs::write(&path, &large[..300_000]).unwrap();
        assert!(matches!(source.leaves(&objects[0]), Err(ObjectError::Corrupt(id)) if id == objects[0].id));
        let mut flipped = large.clone();
        flipped[123_456] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert!(matches!(source.leaves(&objects[0]), Err(ObjectError::Corrupt(_))));
        // Once repaired it is found, although its file was open before.
        source.read(&objects[0], 1, &mut [0]).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &large).unwrap();
        assert!(source.leaves(&objects[0]).is_ok());
    }

    #[test]
    fn a_repository_that_cannot_be_written_still_gives_leaves() {
        let large = pattern(400_000);
        let (dir, source, objects) = repository(&[&large]);
        // A file where the folder would be: nobody can write below it, not even root.
        fs::write(dir.path().join("lazyroot"), b"").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
        assert_eq!(*source.leaves(&objects[0]).unwrap(), verity::leaves(Algorithm::Sha256, &large));
    }
}
