//! EROFS' structures in a manifest, as far as they matter for giving large files addresses.
//!
//! Source: the kernel's `fs/erofs/erofs_fs.h`, and <https://erofs.docs.kernel.org/en/latest/core_ondisk.html>.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::verity::BLOCK;
use rustix::fs::FileType;

/// Where the superblock and fields of it are, in bytes.
pub const SUPERBLOCK: usize = 1024;
pub const FEATURE_COMPAT: usize = SUPERBLOCK + 8;
pub const ROOT_NID: usize = SUPERBLOCK + 14;
pub const INODES: usize = SUPERBLOCK + 16;
pub const BLOCKS: usize = SUPERBLOCK + 36;
pub const META_BLKADDR: usize = SUPERBLOCK + 40;
pub const XATTR_BLKADDR: usize = SUPERBLOCK + 44;

/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the first block has a checksum.
pub const CHECKSUM: u8 = 1;

/// Inodes begin at multiples of this many bytes.
pub const SLOT: usize = 32;

/// `EROFS_INODE_FLAT_PLAIN`: nothing lies behind the inode.
pub const FLAT_PLAIN: u16 = 0;
/// `EROFS_INODE_FLAT_INLINE`: the last block's bytes do.
pub const FLAT_INLINE: u16 = 2;
/// `EROFS_INODE_CHUNK_BASED`: the addresses of the chunks do.
pub const CHUNK_BASED: u16 = 4;
/// `EROFS_CHUNK_FORMAT_INDEXES`: with device numbers; composefs writes plain block addresses.
pub const CHUNK_INDEXES: u32 = 1 << 5;
pub const CHUNK_BITS: u32 = 0x1f;

/// `EROFS_XATTR_INDEX_TRUSTED`: names that begin with `trusted.`.
pub const TRUSTED: u8 = 4;
/// `EROFS_XATTR_INDEX_LUSTRE`, which Linux has no handler for: attributes with it are passed over.
pub const LUSTRE: u8 = 5;
/// The attributes by which overlayfs finds a file's bytes, without `trusted.`.
pub const REDIRECT: &[u8] = b"overlay.redirect";
pub const METACOPY: &[u8] = b"overlay.metacopy";

/// The addresses, as they are given.
pub struct Addresses<'a> {
    /// The objects that there are.
    pub index: &'a ObjectIndex,
    /// Objects of at most this many bytes get no address.
    pub small: u64,
    /// Blocks of the image up to the next free address.
    pub blocks: u32,
    /// First blocks, by position in the index.
    pub first_blocks: HashMap<u32, u32>,
}

impl Addresses<'_> {
    /// The position in the index and the first block of the object at `path` (`/ab/cdef...`), which a file of `size` bytes
    /// names.
    fn of(&mut self, path: &[u8], size: u64) -> Option<(u32, u32)> {
        let (dir, name) = path.strip_prefix(b"/")?.split_at_checked(2)?;
        let dir = u8::from_str_radix(std::str::from_utf8(dir).ok()?, 16).ok()?;
        let position = self.index.position(&ObjectId::from_object_path(dir, name.strip_prefix(b"/")?)?)?;
        if self.index.get(position)?.1 != size {
            return None;
        }
        if let Some(block) = self.first_blocks.get(&position) {
            return Some((position, *block));
        }
        let end = u32::try_from(size.div_ceil(BLOCK as u64)).ok()?.checked_add(self.blocks)?;
        let block = std::mem::replace(&mut self.blocks, end);
        self.first_blocks.insert(position, block);
        Some((position, block))
    }
}

/// Gives the large files in `manifest` their addresses. Inodes lie one behind the other from the root's on.
///
/// Returns the inodes' numbers, by position in the index, of objects that one file has.
pub fn rewrite(manifest: &mut [u8], addresses: &mut Addresses) -> HashMap<u32, u32> {
    let block_at = |field| u32_at(manifest, field).map(|block| block as usize * BLOCK);
    let (Some(root), Some(count), Some(inodes), Some(shared)) =
        (u16_at(manifest, ROOT_NID), u64_at(manifest, INODES), block_at(META_BLKADDR), block_at(XATTR_BLKADDR))
    else {
        return HashMap::new();
    };
    let mut large = Vec::new();
    // Attributes that files without an address need.
    let mut needed = HashSet::new();
    let mut at = inodes + usize::from(root) * SLOT;
    for _ in 0..count {
        // Writers leave slots empty where an inode would not fit into the rest of a block.
        while manifest.get(at..at + SLOT).is_some_and(|slot| slot.iter().all(|byte| *byte == 0)) {
            at += SLOT;
        }
        // What is not understood may be a file that shares its attributes with one that is.
        let Some(inode) = Inode::at(manifest, at) else { return HashMap::new() };
        let number = ((at - inodes) / SLOT) as u32;
        at = inode.end.next_multiple_of(SLOT);
        match inode.location(manifest, shared, addresses) {
            Some(location) => large.push((inode, number, location)),
            None => needed
                .extend(shared_attributes(manifest, inode.xattrs..inode.body, shared).map(|found| found.name_index_at)),
        }
    }
    let in_sight =
        |location: &Location, needed: &HashSet<usize>| location.name_index_at.iter().any(|at| needed.contains(at));
    let mut numbers = HashMap::new();
    // One of a file's attributes that stays in sight keeps the other there, and so every file that shares that.
    while let Some(found) = large.iter().position(|(.., location)| in_sight(location, &needed)) {
        let (.., location) = large.swap_remove(found);
        needed.extend(location.name_index_at);
        numbers.insert(location.position, None);
    }
    for (inode, number, location) in large {
        inode.give_address(manifest, &location);
        numbers.entry(location.position).and_modify(|number| *number = None).or_insert(Some(number));
    }
    manifest[FEATURE_COMPAT] &= !CHECKSUM;
    manifest[BLOCKS..BLOCKS + 4].copy_from_slice(&addresses.blocks.to_le_bytes());
    numbers.into_iter().filter_map(|(position, number)| Some((position, number?))).collect()
}

/// What matters of an inode, where it lies in the manifest.
struct Inode {
    is_file: bool,
    layout: u16,
    size: u64,
    /// Bits of a chunk's size in bytes, for a chunk-based file.
    chunk_bits: u32,
    xattrs: usize,
    /// What follows the attributes: the chunks' addresses.
    body: usize,
    end: usize,
}

impl Inode {
    fn at(manifest: &[u8], at: usize) -> Option<Self> {
        let (format, xattr_count, mode) = (u16_at(manifest, at)?, u16_at(manifest, at + 2)?, u16_at(manifest, at + 4)?);
        let (len, size) = match format & 1 {
            0 => (32, u32_at(manifest, at + 8)?.into()),
            _ => (64, u64_at(manifest, at + 8)?),
        };
        let data = u32_at(manifest, at + 16)?;
        let layout = format >> 1 & 7;
        let xattrs = at + len;
        let xattrs_len = if xattr_count == 0 { 0 } else { 12 + 4 * (usize::from(xattr_count) - 1) };
        let body = xattrs + xattrs_len;
        let chunk_bits = BLOCK.ilog2() + (data & CHUNK_BITS);
        let end = body
            + match layout {
                FLAT_INLINE => usize::try_from(size).ok()? % BLOCK,
                CHUNK_BASED if data & CHUNK_INDEXES != 0 => return None,
                CHUNK_BASED => 4 * usize::try_from(size.div_ceil(1 << chunk_bits)).ok()?,
                FLAT_PLAIN => 0,
                _ => return None,
            };
        let kind = FileType::from_raw_mode(mode.into());
        let is_file = kind == FileType::RegularFile;
        (end <= manifest.len() && kind != FileType::Unknown).then_some(Self {
            is_file,
            layout,
            size,
            chunk_bits,
            xattrs,
            body,
            end,
        })
    }

    /// Where the bytes of a large file are, if an object has them.
    fn location(&self, manifest: &[u8], shared: usize, addresses: &mut Addresses) -> Option<Location> {
        if !self.is_file || self.layout != CHUNK_BASED || self.size <= addresses.small {
            return None;
        }
        let attributes = attributes(manifest, self.xattrs..self.body, shared);
        let find = |name: &[u8]| attributes.iter().find(|attribute| manifest[attribute.name.clone()] == *name);
        let (redirect, metacopy) = (find(REDIRECT)?, find(METACOPY)?);
        let (position, first_block) = addresses.of(&manifest[redirect.value.clone()], self.size)?;
        Some(Location { name_index_at: [redirect.name_index_at, metacopy.name_index_at], position, first_block })
    }

    fn give_address(&self, manifest: &mut [u8], location: &Location) {
        for at in location.name_index_at {
            manifest[at] = LUSTRE;
        }
        let blocks_of_chunk = 1u64 << (self.chunk_bits - BLOCK.ilog2());
        for (number, address) in manifest[self.body..self.end].chunks_exact_mut(4).enumerate() {
            // Fits, since the end of the object does.
            let block = (u64::from(location.first_block) + number as u64 * blocks_of_chunk) as u32;
            address.copy_from_slice(&block.to_le_bytes());
        }
    }
}

/// Where a large file's bytes are.
struct Location {
    /// Of the two attributes that say so, the bytes with the name index.
    name_index_at: [usize; 2],
    /// The object's, in the index.
    position: u32,
    /// In the image.
    first_block: u32,
}

/// An extended attribute, where it lies in the manifest.
struct Attribute {
    /// The byte with the name index: how the name begins.
    name_index_at: usize,
    name: Range<usize>,
    value: Range<usize>,
}

/// Bytes before an inode's attributes; the fifth is the number of those that it shares.
const XATTR_HEADER: usize = 12;

/// The attributes of an inode that begin with `trusted.`, its own and those that it shares with others.
fn attributes(manifest: &[u8], inode: Range<usize>, shared: usize) -> Vec<Attribute> {
    let mut found: Vec<_> = shared_attributes(manifest, inode.clone(), shared).collect();
    let mut at = inode.start + XATTR_HEADER + 4 * found.len();
    while at + 4 <= inode.end {
        let Some(attribute) = attribute(manifest, at) else { break };
        at = attribute.value.end.next_multiple_of(4);
        found.push(attribute);
    }
    found.retain(|attribute| manifest[attribute.name_index_at] == TRUSTED);
    found
}

/// The attributes that an inode shares with others, as far as they are there.
fn shared_attributes(manifest: &[u8], inode: Range<usize>, shared: usize) -> impl Iterator<Item = Attribute> {
    let count = manifest.get(inode.start + 4).copied().filter(|_| !inode.is_empty()).map_or(0, usize::from);
    let ids = (0..count).map_while(move |number| u32_at(manifest, inode.start + XATTR_HEADER + 4 * number));
    ids.map_while(move |id| attribute(manifest, shared + 4 * id as usize))
}

fn attribute(manifest: &[u8], at: usize) -> Option<Attribute> {
    let (name_len, value_len) = (usize::from(*manifest.get(at)?), usize::from(u16_at(manifest, at + 2)?));
    let name = at + 4..at + 4 + name_len;
    let value = name.end..name.end + value_len;
    (value.end <= manifest.len()).then_some(Attribute { name_index_at: at + 1, name, value })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|bytes| u16::from_le_bytes(bytes.try_into().expect("2 bytes")))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}
