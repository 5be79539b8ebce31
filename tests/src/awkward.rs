//! A tree with everything that is easily lost on the way.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use tempfile::TempDir;

use crate::inputs::need_root;

/// Bytes that tell where in a file they are.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Makes the tree.
///
/// # Panics
/// If it cannot be made: device nodes need root.
pub fn awkward_tree() -> TempDir {
    need_root();
    let dir = TempDir::with_prefix("lr").unwrap();
    let root = dir.path();
    let at = |name: &str| root.join(name);
    for (name, size) in [("empty", 0), ("one", 1), ("inline", 64), ("smallest-object", 65), ("page", 4096)] {
        fs::write(at(name), pattern(size)).unwrap();
    }
    fs::write(at("large"), pattern(3_000_001)).unwrap();
    File::create(at("sparse")).unwrap().write_all_at(b"end", 1 << 20).unwrap();
    fs::create_dir_all(at("deep/er/still")).unwrap();
    fs::write(at("deep/er/still/page-again"), pattern(4096)).unwrap();
    fs::create_dir(at("empty-dir")).unwrap();
    for i in 0..300 {
        fs::write(at("deep").join(format!("file-with-a-rather-long-name-{i:03}")), format!("{i}")).unwrap();
    }
    fs::hard_link(at("large"), at("deep/large-too")).unwrap();
    fs::hard_link(at("inline"), at("deep/inline-too")).unwrap();
    symlink("../page", at("deep/relative")).unwrap();
    symlink("/deep/er", at("absolute")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("circle", at("circle")).unwrap();
    let odd = std::ffi::OsStr::new("sp ace\nline\"quote\\");
    fs::write(root.join(odd), "odd").unwrap();
    let bytes: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"not-\xff-utf8");
    fs::write(root.join(bytes), "bytes").unwrap();
    let node = |name: &str, kind, mode, device| {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(mode), device).expect("device nodes need root");
    };
    node("char", FileType::CharacterDevice, 0o620, rustix::fs::makedev(5, 1));
    node("block", FileType::BlockDevice, 0o660, rustix::fs::makedev(259, 70_000));
    node("fifo", FileType::Fifo, 0o600, 0);
    drop(UnixListener::bind(at("socket")).unwrap());
    fs::write(at("owned"), pattern(100)).unwrap();
    std::os::unix::fs::chown(at("owned"), Some(100_000), Some(65_534)).unwrap();
    std::os::unix::fs::lchown(at("dangling"), Some(7), Some(8)).unwrap();
    for (name, mode) in
        [("page", 0o4755), ("one", 0o2711), ("inline", 0o000), ("empty-dir", 0o1777), ("deep/er", 0o2750)]
    {
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    // cap_net_raw+ep, version 2 of the format.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattr = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), key, value, XattrFlags::empty()).unwrap();
    };
    xattr("large", "security.capability", &capability);
    xattr("large", "user.comment", &pattern(200));
    xattr("empty", "user.empty", b"");
    xattr("empty-dir", "user.dir", b"x");
    xattr("fifo", "trusted.note", b"kept");
    xattr("", "user.root", b"the root's own");
    for (name, seconds, nanos) in [
        ("large", 1_600_000_000, 123_456_789),
        ("one", 1, 1),
        ("dangling", 0, 0),
        ("char", 4_000_000_000, 5),
        ("deep/er", 9, 8),
    ] {
        set_mtime(&at(name), seconds, nanos);
    }
    fs::set_permissions(root, Permissions::from_mode(0o1751)).unwrap();
    std::os::unix::fs::chown(root, Some(11), Some(12)).unwrap();
    set_mtime(root, 1_234_567_890, 987_654_321);
    dir
}

/// Sets a file's times, a symbolic link's own included.
///
/// # Panics
/// If they cannot be set.
pub fn set_mtime(path: &Path, tv_sec: i64, tv_nsec: i64) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
