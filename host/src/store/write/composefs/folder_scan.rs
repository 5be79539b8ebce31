//! Whether a folder is as it was when it was imported: a digest of everything that the system says of its files, without
//! reading them. To look at each takes a tenth of what taking them in once more does, even if none is read.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use lazyroot_proto::{Algorithm, ObjectId, verity};

use super::folder_record::{FileState, record_name};
use crate::store::files::Files;

/// A folder's digest, and those of the files in it. Attributes and the targets of links are in it by their inodes' ctimes.
///
/// # Errors
/// If the folder cannot be looked at. `None` if something changed so recently that a later change might not be seen.
pub(super) fn scan(folder: &Path) -> io::Result<Option<ObjectId>> {
    let mut record = Vec::new();
    let settled = look(folder, &fs::symlink_metadata(folder)?, SystemTime::now(), &mut record)?;
    Ok(settled.then(|| verity::digest(Algorithm::Sha256, &record)))
}

/// Adds a file, and what is below it; whether all of it was left alone for long enough.
fn look(path: &Path, meta: &Metadata, now: SystemTime, record: &mut Vec<u8>) -> io::Result<bool> {
    if FileState::of(meta).is_recent(now) {
        return Ok(false);
    }
    for number in [meta.dev(), meta.ino(), meta.nlink(), meta.rdev(), meta.size()] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    for number in [meta.mode(), meta.uid(), meta.gid()] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    for number in [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    if !meta.is_dir() {
        return Ok(true);
    }
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(|entry| entry.file_name());
    record.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        let name = entry.file_name();
        record.extend_from_slice(&(name.len() as u64).to_le_bytes());
        record.extend_from_slice(name.as_bytes());
        if !look(&entry.path(), &entry.metadata()?, now, record)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The image that a folder was imported as, if it was as it is now.
pub(super) fn image_of(files: &Files, folder: &Path, now: &ObjectId) -> Option<ObjectId> {
    let text = String::from_utf8(files.read(&name(folder)).ok()?).ok()?;
    let (then, image) = text.split_once(' ')?;
    (then == now.to_hex()).then(|| image.parse().ok())?
}

/// Remembers the image that a folder is imported as.
pub(super) fn save(files: &Files, folder: &Path, now: &ObjectId, image: &ObjectId) -> io::Result<()> {
    files.write(&name(folder), format!("{} {}", now.to_hex(), image.to_hex()).as_bytes())
}

fn name(folder: &Path) -> String {
    format!("{}.folder", record_name(folder))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_change_is_another_digest_and_none_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        symlink("file", root.join("a/b/link")).unwrap();
        assert_eq!(scan(&root).unwrap(), None, "it has just changed");
        std::thread::sleep(Duration::from_millis(3100));
        let before = scan(&root).unwrap().unwrap();
        assert_eq!(scan(&root).unwrap(), Some(before));
        let files = Files::new(dir.path());
        save(&files, &root, &before, &before).unwrap();
        assert_eq!(image_of(&files, &root, &before), Some(before));
        assert_eq!(image_of(&files, &root.join("a"), &before), None);
        let time = File::open(root.join("a/b/file")).unwrap().metadata().unwrap().modified().unwrap();
        fs::write(root.join("a/b/file"), "y").unwrap();
        File::options().write(true).open(root.join("a/b/file")).unwrap().set_modified(time).unwrap();
        fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        std::thread::sleep(Duration::from_millis(3100));
        let after = scan(&root).unwrap().unwrap();
        assert_ne!(after, before);
        assert_eq!(image_of(&files, &root, &after), None);
    }
}
