//! What an import of a folder remembers of its files, so that the next one reads only those that changed.
//!
//! A file is taken for unchanged if its device, inode, size, mtime and ctime are as they were when it was read (make
//! and git do no better). A time tells changes apart only as finely as the file system keeps it, so a file that was
//! changed just before it was read is not remembered.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use lazyroot_proto::{Algorithm, ObjectId, verity};

use crate::store::files::Files;

/// The first bytes, with the version.
const MAGIC: &[u8; 8] = b"LZRTSEN1";

/// The coarsest times of file systems in use: two seconds (FAT); less a file may have changed after it was read and
/// still have the same times.
const TOO_RECENT: Duration = Duration::from_secs(2);

/// Bytes of an entry before the object's digest: three numbers and two times.
const NUMBERS: usize = 3 * 8 + 2 * (8 + 4);

/// A file at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl FileState {
    pub(super) fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec() as u32),
            changed: (meta.ctime(), meta.ctime_nsec() as u32),
        }
    }

    /// Whether a change now might leave it as it is.
    pub(super) fn is_recent(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return true };
        let limit = now.saturating_sub(TOO_RECENT).as_secs() as i64;
        self.modified.0 >= limit || self.changed.0 >= limit
    }
}

/// Which object each file of a folder was at the last import, and is at this one.
pub(super) struct FolderRecord {
    name: String,
    algorithm: Algorithm,
    before: HashMap<(u64, u64), (FileState, ObjectId)>,
    now: Mutex<Vec<(FileState, ObjectId)>>,
}

impl FolderRecord {
    /// What the last import of the folder at `path` recorded.
    pub(super) fn load(files: &Files, path: &Path, algorithm: Algorithm) -> Self {
        let name = record_name(path);
        let entries = files.read(&name).ok().and_then(|bytes| parse(&bytes, algorithm)).unwrap_or_default();
        let before = entries.into_iter().map(|(state, id)| ((state.device, state.inode), (state, id))).collect();
        Self { name, algorithm, before, now: Mutex::default() }
    }

    /// Knows nothing of an earlier import.
    pub(super) fn empty(path: &Path, algorithm: Algorithm) -> Self {
        Self { name: record_name(path), algorithm, before: HashMap::new(), now: Mutex::default() }
    }

    /// The object that a file was, if it did not change since.
    pub(super) fn object(&self, state: &FileState) -> Option<ObjectId> {
        let (before, id) = self.before.get(&(state.device, state.inode))?;
        (before == state).then_some(*id)
    }

    /// A file in this state is this object.
    pub(super) fn add(&self, state: FileState, id: ObjectId) {
        if !state.is_recent(SystemTime::now()) {
            self.now.lock().expect("no panic under the lock").push((state, id));
        }
    }

    /// Writes down what was found, if it is not what was known.
    pub(super) fn save(&self, files: &Files) -> io::Result<()> {
        let now = self.now.lock().expect("no panic under the lock");
        let unchanged = now.len() == self.before.len() && now.iter().all(|(state, id)| self.object(state) == Some(*id));
        if unchanged {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(MAGIC.len() + now.len() * (NUMBERS + 64));
        bytes.extend_from_slice(MAGIC);
        for (state, id) in now.iter() {
            for number in [state.device, state.inode, state.size] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for (seconds, nanoseconds) in [state.modified, state.changed] {
                bytes.extend_from_slice(&seconds.to_le_bytes());
                bytes.extend_from_slice(&nanoseconds.to_le_bytes());
            }
            bytes.extend_from_slice(id.as_bytes());
        }
        // A wrong id would be a wrong image.
        bytes.extend_from_slice(verity::digest(self.algorithm, &bytes).as_bytes());
        files.write(&self.name, &bytes)
    }
}

/// The file of a folder's record, below lazyroot's own folder. Paths are long, and of any bytes.
pub(super) fn record_name(path: &Path) -> String {
    format!("seen/{}", verity::digest(Algorithm::Sha256, path.as_os_str().as_bytes()).to_hex())
}

fn parse(bytes: &[u8], algorithm: Algorithm) -> Option<Vec<(FileState, ObjectId)>> {
    let digest_len = algorithm.digest_len();
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(digest_len)?)?;
    let entries = content.strip_prefix(MAGIC)?;
    if verity::digest(algorithm, content).as_bytes() != digest || !entries.len().is_multiple_of(NUMBERS + digest_len) {
        return None;
    }
    let entry = |entry: &[u8]| {
        let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
        let time =
            |at: usize| (long(at) as i64, u32::from_le_bytes(entry[at + 8..at + 12].try_into().expect("4 bytes")));
        let state =
            FileState { device: long(0), inode: long(8), size: long(16), modified: time(24), changed: time(36) };
        Some((state, ObjectId::new(algorithm, &entry[NUMBERS..])?))
    };
    entries.chunks_exact(NUMBERS + digest_len).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_found_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let state = |inode, changed| FileState { device: 7, inode, size: 9, modified: (5, 6), changed: (changed, 0) };
        let id = |byte: u8| verity::digest(Algorithm::Sha256, &[byte]);
        let record = FolderRecord::load(&files, Path::new("/a"), Algorithm::Sha256);
        record.add(state(1, 10), id(1));
        record.add(state(2, 10), id(2));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        record.add(state(3, now), id(3));
        record.save(&files).unwrap();
        let again = FolderRecord::load(&files, Path::new("/a"), Algorithm::Sha256);
        assert_eq!(again.object(&state(1, 10)), Some(id(1)));
        assert_eq!(again.object(&state(1, 11)), None, "it changed");
        assert_eq!(again.object(&state(3, now)), None, "it may have changed within the same second");
        assert_eq!(FolderRecord::load(&files, Path::new("/b"), Algorithm::Sha256).object(&state(1, 10)), None);
        // A damaged memory is no memory.
        let path = files.path(&again.name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(FolderRecord::load(&files, Path::new("/a"), Algorithm::Sha256).object(&state(1, 10)), None);
    }
}
