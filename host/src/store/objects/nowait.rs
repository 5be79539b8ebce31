//! Reading files without ever waiting for a disk, where the system can.

#[cfg(target_os = "linux")]
pub(super) use linux::{open, read_exact_at};

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;

    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use rustix::io::ReadWriteFlags;
    use rustix::path::Arg;

    /// Opens a file whose path is in the kernel's dentry cache (`RESOLVE_CACHED`, Linux 5.12). Any error, also
    /// that of an older kernel, means that the caller takes the path that may wait.
    pub(in crate::store) fn open(dir: impl AsFd, path: impl Arg) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat2(dir, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
    }

    /// Fills `buf` from the page cache (`RWF_NOWAIT`); `false` if not all of it is there.
    pub(in crate::store) fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> bool {
        while !buf.is_empty() {
            match rustix::io::preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
                // The kernel returns what it had when it met a page that is not in memory; the next call says so.
                Ok(read) if read > 0 => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                _ => return false,
            }
        }
        true
    }
}

/// Elsewhere everything may wait.
#[cfg(not(target_os = "linux"))]
pub(super) fn open(_dir: impl std::os::fd::AsFd, _path: impl rustix::path::Arg) -> Option<std::fs::File> {
    None
}

/// Elsewhere everything may wait.
#[cfg(not(target_os = "linux"))]
pub(super) fn read_exact_at(_file: &std::fs::File, _buf: &mut [u8], _offset: u64) -> bool {
    false
}
