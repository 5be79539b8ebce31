//! FUSE's structures as they lie in memory, for requests that come over io_uring ([`crate::fuse::ring`]). All fields are in the
//! machine's byte order. Source: Linux, include/uapi/linux/fuse.h, of ABI 7.42.

use fuser::{FileAttr, FileType};

use crate::fuse::data_layer::FOREVER;

/// Requests that the data layer answers: `enum fuse_opcode`.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const GETATTR: u32 = 3;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const OPENDIR: u32 = 27;
    pub const RELEASEDIR: u32 = 29;
    pub const DESTROY: u32 = 38;
    pub const READDIRPLUS: u32 = 44;
}

/// Bytes of `struct fuse_out_header`.
const OUT_HEADER: usize = 16;
/// Bytes of `struct fuse_entry_out`.
const ENTRY_OUT: usize = 128;
/// Bytes of `struct fuse_dirent` up to its name.
const DIRENT: usize = 24;
/// Names in a listing end at multiples of this many bytes.
const DIRENT_ALIGN: usize = 8;

/// What fuser answers to STATFS, through the device.
const STATFS_BLOCK: u32 = 512;
const LONGEST_NAME: u32 = 255;

/// What a request is: fields of `struct fuse_in_header`.
pub struct Head {
    /// Its [`opcode`].
    pub opcode: u32,
    /// Its number, which the reply repeats.
    pub unique: u64,
    /// The inode that it is about.
    pub node: u64,
}

/// The head in a `struct fuse_in_header`.
pub fn head(bytes: &[u8]) -> Head {
    Head { opcode: u32_at(bytes, 4), unique: u64_at(bytes, 8), node: u64_at(bytes, 16) }
}

/// Offset and size, in bytes, in a `struct fuse_read_in`.
pub fn read_in(bytes: &[u8]) -> (u64, u32) {
    (u64_at(bytes, 8), u32_at(bytes, 16))
}

/// A number in a structure, `at` bytes from its beginning.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().expect("structures are longer"))
}

/// As [`u32_at`].
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().expect("structures are longer"))
}

/// Writes the `struct fuse_out_header` of the reply to the request `unique`: so many bytes follow, or it is an errno.
pub fn out_header(bytes: &mut [u8], unique: u64, reply: Result<usize, i32>) {
    let mut out = Writer::new(bytes);
    out.u32((OUT_HEADER + reply.unwrap_or(0)) as u32);
    out.u32(reply.err().map_or(0, |errno| -errno) as u32);
    out.u64(unique);
}

/// Writes a `struct fuse_entry_out`; its length in bytes.
pub fn entry_out(bytes: &mut [u8], attr: &FileAttr) -> usize {
    let mut out = Writer::new(bytes);
    out.entry(attr);
    out.len
}

/// Writes a `struct fuse_attr_out`; its length in bytes.
pub fn attr_out(bytes: &mut [u8], attr: &FileAttr) -> usize {
    let mut out = Writer::new(bytes);
    out.u64(FOREVER.as_secs());
    out.u64(0);
    out.attr(attr);
    out.len
}

/// Writes a `struct fuse_open_out` of what needs no handle; its length in bytes.
pub fn open_out(bytes: &mut [u8]) -> usize {
    let mut out = Writer::new(bytes);
    out.put(&[0; 16]);
    out.len
}

/// Writes a `struct fuse_statfs_out` of what has no room; its length in bytes.
pub fn statfs_out(bytes: &mut [u8]) -> usize {
    let mut out = Writer::new(bytes);
    // Blocks and files: how many, free, available.
    out.put(&[0; 5 * 8]);
    out.u32(STATFS_BLOCK);
    out.u32(LONGEST_NAME);
    out.put(&[0; 8 * 4]);
    out.len
}

/// A listing: `struct fuse_direntplus`, one after the other.
pub struct Listing<'a>(Writer<'a>);

impl<'a> Listing<'a> {
    /// One that fits into `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self(Writer::new(bytes))
    }

    /// Adds what has the name; `next` is the offset behind it. `false` if there is no room.
    pub fn add(&mut self, attr: &FileAttr, next: u64, name: &[u8]) -> bool {
        let out = &mut self.0;
        let padded = name.len().next_multiple_of(DIRENT_ALIGN);
        if out.len + ENTRY_OUT + DIRENT + padded > out.bytes.len() {
            return false;
        }
        out.entry(attr);
        out.u64(attr.ino.0);
        out.u64(next);
        out.u32(name.len() as u32);
        // The type as in d_type: S_IFMT without the bits of the mode below it.
        out.u32(file_type(attr) >> 12);
        out.put(name);
        out.put(&[0; DIRENT_ALIGN][..padded - name.len()]);
        true
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }
}

/// Writes one field after the other.
struct Writer<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, len: 0 }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }

    /// `struct fuse_entry_out`.
    fn entry(&mut self, attr: &FileAttr) {
        self.u64(attr.ino.0);
        // Its generation: no inode is used twice.
        self.u64(0);
        // How long the name and the attributes hold: seconds, then nanoseconds.
        self.u64(FOREVER.as_secs());
        self.u64(FOREVER.as_secs());
        self.u64(0);
        self.attr(attr);
    }

    /// `struct fuse_attr`.
    fn attr(&mut self, attr: &FileAttr) {
        self.u64(attr.ino.0);
        self.u64(attr.size);
        self.u64(attr.blocks);
        // Its three times: nothing here has any.
        self.put(&[0; 3 * 8 + 3 * 4]);
        self.u32(file_type(attr) | u32::from(attr.perm));
        self.u32(attr.nlink);
        self.u32(attr.uid);
        self.u32(attr.gid);
        self.u32(attr.rdev);
        self.u32(attr.blksize);
        self.u32(attr.flags);
    }
}

fn file_type(attr: &FileAttr) -> u32 {
    match attr.kind {
        FileType::Directory => libc::S_IFDIR,
        _ => libc::S_IFREG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuser::INodeNo;
    use std::time::UNIX_EPOCH;

    const FILE: FileAttr = FileAttr {
        ino: INodeNo(300),
        size: 5000,
        blocks: 10,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0o444,
        nlink: 1,
        uid: 7,
        gid: 8,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    };

    /// Offsets of fields as the C compiler lays out include/uapi/linux/fuse.h.
    #[test]
    fn structures_are_laid_out_as_in_the_kernels_header() {
        let mut bytes = [0xff; 4096];
        assert_eq!(entry_out(&mut bytes, &FILE), 128);
        assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 40), u64_at(&bytes, 48)), (300, 300, 5000));
        assert_eq!((u32_at(&bytes, 40 + 60), u32_at(&bytes, 40 + 68), u32_at(&bytes, 40 + 72)), (0o100444, 7, 8));
        assert_eq!((u32_at(&bytes, 40 + 80), u32_at(&bytes, 40 + 84)), (4096, 0));
        assert_eq!(attr_out(&mut bytes, &FILE), 104);
        assert_eq!((u64_at(&bytes, 16), u64_at(&bytes, 24), u64_at(&bytes, 32)), (300, 5000, 10));
        assert_eq!(open_out(&mut bytes), 16);
        assert_eq!(statfs_out(&mut bytes), 80);
        assert_eq!((u32_at(&bytes, 40), u32_at(&bytes, 44)), (512, 255));
        out_header(&mut bytes, 9, Ok(100));
        assert_eq!((u32_at(&bytes, 0), u32_at(&bytes, 4), u64_at(&bytes, 8)), (116, 0, 9));
        out_header(&mut bytes, 9, Err(libc::EIO));
        assert_eq!((u32_at(&bytes, 0), u32_at(&bytes, 4) as i32), (16, -libc::EIO));
    }

    #[test]
    fn a_listing_ends_where_the_next_name_does_not_fit() {
        let mut bytes = [0xff; 2 * (128 + 24 + 16)];
        let mut listing = Listing::new(&mut bytes);
        assert!(listing.add(&FILE, 1, b"123456789"), "padded to 16 bytes");
        assert!(!listing.add(&FILE, 2, b"12345678901234567"), "17 bytes take 24");
        assert!(listing.add(&FILE, 2, b"1234567890123456"));
        assert_eq!(listing.len(), 2 * 168);
        assert_eq!((u64_at(&bytes, 128), u64_at(&bytes, 136), u32_at(&bytes, 144)), (300, 1, 9));
        assert_eq!((u32_at(&bytes, 148), &bytes[152..168]), (u32::from(libc::DT_REG), &b"123456789\0\0\0\0\0\0\0"[..]));
    }
}
