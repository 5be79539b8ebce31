//! A data layer in memory, ahead of the FUSE layer: objects that are here are read without any request.
//!
//! overlayfs looks for an object here first when a file is opened. Its memory cannot be taken back by the kernel while a
//! file is known to it, so only a budget's worth goes here, and after the boot the names are removed, and nothing comes any
//! more: what no program has opened is free then, and the rest once the kernel forgets the files.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;

use lazyroot_proto::ObjectId;
use lazyroot_proto::verified::Verified;
use rustix::fs::{AtFlags, Mode, OFlags};

/// See the module.
pub struct MemoryLayer {
    layer: OwnedFd,
    /// What is here; `None` once it was cleared.
    names: Mutex<Option<Vec<String>>>,
}

impl MemoryLayer {
    /// The layer at `path`: a folder of a tmpfs, empty.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { layer: rustix::fs::open(path, flags, Mode::empty())?, names: Mutex::new(Some(Vec::new())) })
    }

    /// Puts an object here. Nobody sees half of one.
    ///
    /// # Errors
    /// If there is no memory for it, it is here already, or the layer was cleared.
    pub fn put(&self, id: &ObjectId, content: &Verified) -> io::Result<()> {
        if self.names.lock().expect("no panic under the lock").is_none() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let name = id.object_path();
        let folder = name.split_once('/').map_or(".", |(folder, _)| folder);
        let unnamed = |folder| {
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.layer, folder, flags, Mode::RUSR | Mode::RGRP | Mode::ROTH)
        };
        let file = match unnamed(folder) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&self.layer, folder, Mode::RWXU)?;
                unnamed(folder)?
            }
            other => other?,
        };
        let mut rest = &content[..];
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = &rest[written..];
        }
        rustix::fs::linkat(&file, "", &self.layer, &name, AtFlags::EMPTY_PATH)?;
        match self.names.lock().expect("no panic under the lock").as_mut() {
            Some(names) => names.push(name),
            None => {
                // Cleared meanwhile.
                let _ = rustix::fs::unlinkat(&self.layer, name, AtFlags::empty());
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }

    /// Removes everything; what programs have opened stays theirs.
    pub fn clear(&self) {
        for name in self.names.lock().expect("no panic under the lock").take().unwrap_or_default() {
            let _ = rustix::fs::unlinkat(&self.layer, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::verified::Unverified;
    use lazyroot_proto::{Algorithm, verity};
    use std::fs;

    #[test]
    fn objects_are_there_whole_until_the_layer_is_cleared() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let layer = MemoryLayer::open(dir.path()).unwrap();
        let id = verity::digest(Algorithm::Sha256, b"content");
        let content = Unverified::from(b"content".to_vec()).verify_object(&id).unwrap();
        layer.put(&id, &content).unwrap();
        assert!(layer.put(&id, &content).is_err(), "once is enough");
        let path = dir.path().join(id.object_path());
        assert_eq!(fs::read(&path).unwrap(), b"content");
        layer.clear();
        assert!(!path.exists());
        assert!(layer.put(&id, &content).is_err(), "nothing comes any more");
    }
}
