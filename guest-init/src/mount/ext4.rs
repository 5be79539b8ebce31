//! The smallest ext4 that a kernel mounts and grows: one block group, empty, written to a disk that is all zeros.
//!
//! No image need bring `mkfs`, and no host either: what is written here are some dozen blocks, and the kernel adds the
//! other block groups as it grows the file system to the disk's size (`EXT4_IOC_RESIZE_FS`). Tables need not be
//! cleared, since all that is not written here is zero: the disk stays sparse.
//!
//! The layout is that of the kernel's `Documentation/filesystems/ext4`; fields are at the offsets given there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use lazyroot_proto::boot::UPPER_DISK_BYTES;

/// Bytes in a block.
pub const BLOCK: usize = 4096;

/// Blocks in a block group: as many as one block of bitmap has bits.
const GROUP: u32 = 8 * BLOCK as u32;

/// What is written here takes so much of a disk, in bytes.
const LEAST: u64 = GROUP as u64 * BLOCK as u64;

/// Inodes in a block group: one for 16 KiB of disk, as mke2fs has it.
const INODES: u32 = GROUP / 4;
const INODE: usize = 256;

/// Blocks kept for the descriptors of groups to come. Each backup of the superblock that the kernel adds as it grows has
/// as many, and has them cleared and written: 1 MiB, ten times in a disk of 16 GiB.
const RESERVED: u32 = 255;

// A block has 128 descriptors.
const _: () = assert!(*UPPER_DISK_BYTES.end() == (RESERVED as u64 + 1) * (BLOCK as u64 / 32) * LEAST);
const _: () = assert!(*UPPER_DISK_BYTES.start() == LEAST);

/// Blocks of the journal: 32 MiB, with room for several transactions of the largest kind.
const JOURNAL: u32 = 8192;

// Where everything is, in blocks.
const DESCRIPTORS: u32 = 1;
const BLOCK_BITMAP: u32 = DESCRIPTORS + 1 + RESERVED;
const INODE_BITMAP: u32 = BLOCK_BITMAP + 1;
const INODE_TABLE: u32 = INODE_BITMAP + 1;
const ROOT_DIR: u32 = INODE_TABLE + INODES * INODE as u32 / BLOCK as u32;
const LOST_AND_FOUND_DIR: u32 = ROOT_DIR + 1;
const RESIZE_MAP: u32 = LOST_AND_FOUND_DIR + 1;
const JOURNAL_START: u32 = RESIZE_MAP + 1;
const USED: u32 = JOURNAL_START + JOURNAL;

// Inodes by number; the first eleven are taken.
const ROOT: u32 = 2;
const RESIZE: u32 = 7;
const JOURNAL_FILE: u32 = 8;
const LOST_AND_FOUND: u32 = 11;

/// A block being filled in.
struct Block(Vec<u8>);

impl Block {
    fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }
}

/// Whether nothing was ever written to the disk, or a [`format`] of it did not end.
///
/// # Errors
/// If it cannot be read.
pub fn is_blank(disk: &File) -> io::Result<bool> {
    let mut first = [0; BLOCK];
    disk.read_exact_at(&mut first, 0)?;
    Ok(first.iter().all(|byte| *byte == 0))
}

/// Blocks of the file system on a disk, or an error if there is none.
///
/// # Errors
/// If the disk cannot be read, or has no ext4.
pub fn blocks(disk: &File) -> io::Result<u64> {
    let mut superblock = [0; 1024];
    disk.read_exact_at(&mut superblock, 1024)?;
    if superblock[56..58] != MAGIC.to_le_bytes() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no ext4"));
    }
    let word = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().expect("four bytes"));
    Ok(u64::from(word(4)))
}

/// Writes an empty file system of 128 MiB to a disk whose every byte is zero. `uuid` should be random, `now` is
/// in seconds since 1970. Its superblock comes last: a disk where this was cut short [`is_blank`].
///
/// # Errors
/// If the disk cannot be written.
pub fn format(disk: &File, uuid: [u8; 16], now: u32) -> io::Result<()> {
    let write = |block: u32, content: &[u8]| disk.write_all_at(content, u64::from(block) * BLOCK as u64);
    write(DESCRIPTORS, &descriptor(uuid))?;
    write(BLOCK_BITMAP, &bitmap(USED, GROUP))?;
    write(INODE_BITMAP, &bitmap(LOST_AND_FOUND, INODES))?;
    let inodes = inodes(now);
    write(INODE_TABLE, &inodes.0)?;
    write(ROOT_DIR, &directory(&[(ROOT, "."), (ROOT, ".."), (LOST_AND_FOUND, "lost+found")]))?;
    write(LOST_AND_FOUND_DIR, &directory(&[(LOST_AND_FOUND, "."), (ROOT, "..")]))?;
    let mut map = Block::new(BLOCK);
    for number in 1..=RESERVED {
        map.u32(4 * number as usize, DESCRIPTORS + number);
    }
    write(RESIZE_MAP, &map.0)?;
    write(JOURNAL_START, &journal_superblock())?;
    disk.sync_all()?;
    // As it is found in the inode, lest that be lost.
    let journal = &inodes.0[(JOURNAL_FILE as usize - 1) * INODE..][..INODE];
    disk.write_all_at(&superblock(uuid, now, &journal[40..100]), 1024)?;
    disk.sync_all()
}

const MAGIC: u16 = 0xEF53;

fn superblock(uuid: [u8; 16], now: u32, journal_blocks: &[u8]) -> Vec<u8> {
    const HAS_JOURNAL_EXT_ATTR_RESIZE_INODE_DIR_INDEX: u32 = 0x4 | 0x8 | 0x10 | 0x20;
    const FILETYPE_EXTENTS_FLEX_BG: u32 = 0x2 | 0x40 | 0x200;
    const SPARSE_SUPER_LARGE_FILE_HUGE_FILE_GDT_CSUM_DIR_NLINK_EXTRA_ISIZE: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40;
    const XATTR_USER_ACL: u32 = 0x4 | 0x8;
    let mut block = Block::new(1024);
    block.u32(0, INODES).u32(4, GROUP).u32(12, GROUP - USED).u32(16, INODES - LOST_AND_FOUND);
    // Blocks and clusters of 1024 << 2 bytes.
    block.u32(24, 2).u32(28, 2).u32(32, GROUP).u32(36, GROUP).u32(40, INODES).u32(48, now);
    // Clean; go on after errors; checked for no reason but errors; dynamic inode sizes.
    block.u16(54, u16::MAX).u16(56, MAGIC).u16(58, 1).u16(60, 1).u32(64, now).u32(76, 1);
    block.u32(84, LOST_AND_FOUND).u16(88, INODE as u16);
    block.u32(92, HAS_JOURNAL_EXT_ATTR_RESIZE_INODE_DIR_INDEX);
    block.u32(96, FILETYPE_EXTENTS_FLEX_BG).u32(100, SPARSE_SUPER_LARGE_FILE_HUGE_FILE_GDT_CSUM_DIR_NLINK_EXTRA_ISIZE);
    block.put(104, &uuid).u16(206, RESERVED as u16).u32(224, JOURNAL_FILE);
    // Names are hashed by half MD4, of unsigned characters, with a seed of the disk's own.
    block.put(236, &uuid).put(252, &[1]).u32(352, 2);
    block.u32(256, XATTR_USER_ACL).u32(264, now);
    block.put(253, &[1]).put(268, journal_blocks).u32(268 + 64, JOURNAL * BLOCK as u32);
    // Inodes have 32 bytes beyond the first 128, and groups keep their tables together by 1 << 4.
    block.u16(348, 32).u16(350, 32).put(372, &[4]);
    block.0
}

/// That of the one group, with its checksum.
fn descriptor(uuid: [u8; 16]) -> Vec<u8> {
    const INODE_ZEROED: u16 = 4;
    let mut block = Block::new(32);
    block.u32(0, BLOCK_BITMAP).u32(4, INODE_BITMAP).u32(8, INODE_TABLE).u16(12, (GROUP - USED) as u16);
    block.u16(14, (INODES - LOST_AND_FOUND) as u16).u16(16, 2).u16(18, INODE_ZEROED);
    block.u16(28, (INODES - LOST_AND_FOUND) as u16);
    let checksum = crc16(&[&uuid, &0u32.to_le_bytes()[..], &block.0[..30]].concat());
    block.u16(30, checksum);
    block.0
}

/// CRC-16 as in the kernel's lib/crc16.c, from all ones.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(u16::MAX, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

/// The first `used` of `all` are taken; so is what there is not.
fn bitmap(used: u32, all: u32) -> Vec<u8> {
    let mut block = Block::new(BLOCK);
    for bit in (0..used).chain(all..GROUP) {
        block.0[bit as usize / 8] |= 1 << (bit % 8);
    }
    block.0
}

/// The beginning of the inode table.
fn inodes(now: u32) -> Block {
    const DIRECTORY: u16 = 0o040_000;
    const FILE: u16 = 0o100_000;
    const EXTENTS: u32 = 0x8_0000;
    let mut table = Block::new(LOST_AND_FOUND as usize * INODE);
    let mut inode = |number: u32, mode: u16, links: u16, bytes: u64, blocks: u32| {
        let mut inode = Block::new(INODE);
        inode.u16(0, mode).u32(4, bytes as u32).u32(108, (bytes >> 32) as u32).u16(26, links);
        // In units of 512 bytes.
        inode.u32(8, now).u32(12, now).u32(16, now).u32(28, blocks * (BLOCK as u32 / 512)).u16(128, 32);
        match number {
            // By its double indirect block, whose entries are the blocks that are kept.
            RESIZE => inode.u32(40 + 13 * 4, RESIZE_MAP),
            _ => {
                let start = match number {
                    ROOT => ROOT_DIR,
                    JOURNAL_FILE => JOURNAL_START,
                    _ => LOST_AND_FOUND_DIR,
                };
                // A header with one of at most four extents, of depth 0; and that.
                inode.u32(32, EXTENTS).u16(40, 0xF30A).u16(42, 1).u16(44, 4).u16(56, blocks as u16).u32(60, start)
            }
        };
        table.put((number as usize - 1) * INODE, &inode.0);
    };
    let indirect = BLOCK as u64 / 4;
    inode(ROOT, DIRECTORY | 0o755, 3, BLOCK as u64, 1);
    // As large as a file could be with a double indirect block (lib/ext2fs/res_gdt.c of e2fsprogs).
    inode(RESIZE, FILE | 0o600, 1, (indirect * indirect + indirect + 12) * BLOCK as u64, RESERVED + 1);
    inode(JOURNAL_FILE, FILE | 0o600, 1, u64::from(JOURNAL) * BLOCK as u64, JOURNAL);
    inode(LOST_AND_FOUND, DIRECTORY | 0o700, 2, BLOCK as u64, 1);
    table
}

/// A folder with only folders in it.
fn directory(entries: &[(u32, &str)]) -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut block = Block::new(BLOCK);
    let mut at = 0;
    for (number, (inode, name)) in entries.iter().enumerate() {
        let last = number + 1 == entries.len();
        let len = if last { BLOCK - at } else { (8 + name.len()).next_multiple_of(4) };
        block.u32(at, *inode).u16(at + 4, len as u16).put(at + 6, &[name.len() as u8, DIRECTORY]);
        block.put(at + 8, name.as_bytes());
        at += len;
    }
    block.0
}

/// That of an empty journal (JBD2, whose numbers are big-endian).
fn journal_superblock() -> Vec<u8> {
    let mut block = Block::new(BLOCK);
    const MAGIC: u32 = 0xC03B_3998;
    const SUPERBLOCK_V2: u32 = 4;
    // Block size, length, first block of the log, first sequence number; 64: one file system uses it.
    for (at, value) in [(0, MAGIC), (4, SUPERBLOCK_V2), (12, BLOCK as u32), (16, JOURNAL), (20, 1), (24, 1), (64, 1)] {
        block.put(at, &u32::to_be_bytes(value));
    }
    block.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    /// Needs e2fsprogs, as `make test` has them. That the kernel can use it and grow it is for tests with a VM: where
    /// tests run there may be no loop devices.
    #[test]
    fn e2fsck_and_resize2fs_find_nothing_wrong_with_it() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(40 << 30).unwrap();
        assert!(is_blank(disk.as_file()).unwrap() && blocks(disk.as_file()).is_err());
        format(disk.as_file(), *b"a uuid of a test", 1_700_000_000).unwrap();
        assert!(!is_blank(disk.as_file()).unwrap());
        assert_eq!(blocks(disk.as_file()).unwrap() * BLOCK as u64, LEAST);
        // In units of 512 bytes (stat(2)).
        let taken = || disk.as_file().metadata().unwrap().blocks() * 512;
        assert!(taken() < 1 << 20, "it is not sparse: {}", taken());
        let check = || {
            let output = Command::new("/sbin/e2fsck").arg("-fn").arg(disk.path()).output().expect("e2fsck is there");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        };
        check();
        // Nor does resize2fs, which takes none that it finds odd.
        let resized = Command::new("/sbin/resize2fs").arg(disk.path()).arg("20G").output().unwrap();
        assert!(resized.status.success(), "{}", String::from_utf8_lossy(&resized.stderr));
        check();
    }
}
