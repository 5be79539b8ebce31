//! The image as one file: the manifest, and behind it every large object at an address of its own.
//!
//! A composefs manifest says of a file which object holds its bytes; overlayfs looks that up in the data layer, and
//! reads it through FUSE's page cache. For small files that is as good as anything. For large ones it is not: FUSE's page
//! cache is made of single pages, which takes two to four times as long to read as EROFS' large folios, even when all of
//! it is there. So in the manifest that the kernel mounts the large files are plain files of EROFS: their chunks, which
//! composefs leaves without an address, point behind the manifest, and the two attributes that would send overlayfs
//! elsewhere are out of its sight. EROFS then reads their blocks straight into its own page cache, from the file that
//! this module lays out.
//!
//! What is rewritten is the verified manifest. A file that is not found here, because a manifest is laid out
//! differently than those we know, stays as it was, and is read as the small ones are.
//!
//! EROFS' structures: the kernel's `fs/erofs/erofs_fs.h`, and <https://erofs.docs.kernel.org/en/latest/core_ondisk.html>.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::verity::BLOCK;

use crate::sys;

/// Where the superblock and fields of it are, in bytes.
const SUPERBLOCK: usize = 1024;
const FEATURE_COMPAT: usize = SUPERBLOCK + 8;
const ROOT_NID: usize = SUPERBLOCK + 14;
const BLOCKS: usize = SUPERBLOCK + 36;
const META_BLKADDR: usize = SUPERBLOCK + 40;
const XATTR_BLKADDR: usize = SUPERBLOCK + 44;

/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the first block has a checksum.
const CHECKSUM: u8 = 1;

/// Inodes begin at multiples of this many bytes.
const SLOT: usize = 32;

/// `EROFS_INODE_FLAT_INLINE`: the last block's bytes lie behind the inode.
const FLAT_INLINE: u16 = 2;
/// `EROFS_INODE_CHUNK_BASED`: the addresses of the chunks lie behind the inode.
const CHUNK_BASED: u16 = 4;
/// `EROFS_CHUNK_FORMAT_INDEXES`: with device numbers; composefs writes plain block addresses.
const CHUNK_INDEXES: u32 = 1 << 5;
const CHUNK_BITS: u32 = 0x1f;

/// `EROFS_XATTR_INDEX_TRUSTED`: names that begin with `trusted.`.
const TRUSTED: u8 = 4;
/// `EROFS_XATTR_INDEX_LUSTRE`, which Linux has no handler for: attributes with it are passed over.
const UNSEEN: u8 = 5;
/// The attributes by which overlayfs finds a file's bytes, without `trusted.`.
const REDIRECT: &[u8] = b"overlay.redirect";
const METACOPY: &[u8] = b"overlay.metacopy";

/// See the module.
pub struct ImageFile {
    /// The rewritten manifest, whole blocks of it.
    manifest: File,
    manifest_len: u64,
    /// The first block of each object that has an address, and its position in the index; in the order of blocks.
    objects: Vec<(u32, u32)>,
    end: u64,
}

/// What is at an address.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// So many bytes of the manifest.
    Manifest(u64),
    /// An object.
    Object {
        /// Its position in the index.
        position: u32,
        /// The byte of it.
        offset: u64,
        /// Bytes until something else begins, at least 1. Those behind the object's end are zeros.
        left: u64,
    },
}

impl ImageFile {
    /// The image of `manifest`, which is verified, which nobody else changes, and which gets its addresses, with the objects
    /// of `index` of more than `small` bytes.
    ///
    /// # Errors
    /// If the manifest cannot be mapped into memory.
    pub fn new(manifest: File, index: &ObjectIndex, small: u64) -> io::Result<Self> {
        let manifest_len = manifest.metadata()?.len().next_multiple_of(BLOCK as u64);
        manifest.set_len(manifest_len)?;
        let mut layout =
            Layout { index, small, blocks: (manifest_len / BLOCK as u64) as u32, addresses: HashMap::new() };
        rewrite(&mut sys::map_shared(&manifest)?, &mut layout);
        let mut objects: Vec<_> = layout.addresses.into_iter().map(|(position, block)| (block, position)).collect();
        objects.sort_unstable();
        let end = u64::from(layout.blocks) * BLOCK as u64;
        Ok(Self { manifest, manifest_len, objects, end })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Bytes of it that are the manifest, whole blocks.
    pub fn manifest_len(&self) -> u64 {
        self.manifest_len
    }

    /// What is at byte `offset`; `None` at the end.
    pub fn place(&self, offset: u64) -> Option<Place> {
        if offset < self.manifest_len {
            return Some(Place::Manifest(self.manifest_len - offset));
        }
        let start = |block: u32| u64::from(block) * BLOCK as u64;
        let next = self.objects.partition_point(|(block, _)| start(*block) <= offset);
        let end = self.objects.get(next).map_or(self.end, |(block, _)| start(*block));
        let (block, position) = *self.objects.get(next.checked_sub(1)?)?;
        (offset < end).then(|| Place::Object { position, offset: offset - start(block), left: end - offset })
    }

    /// Fills `bytes` from byte `offset` of the manifest on.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn read_manifest(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.manifest.read_exact_at(bytes, offset)
    }
}

/// The addresses, as they are given.
struct Layout<'a> {
    index: &'a ObjectIndex,
    small: u64,
    /// Blocks that are taken.
    blocks: u32,
    /// First blocks, by position in the index.
    addresses: HashMap<u32, u32>,
}

impl Layout<'_> {
    /// The first block of the object at `path` (`/ab/cdef...`), which a file of `size` bytes names.
    fn address(&mut self, path: &[u8], size: u64) -> Option<u32> {
        let (dir, name) = path.strip_prefix(b"/")?.split_at_checked(2)?;
        let dir = u8::from_str_radix(std::str::from_utf8(dir).ok()?, 16).ok()?;
        let position = self.index.position(&ObjectId::from_object_path(dir, name.strip_prefix(b"/")?)?)?;
        if self.index.get(position)?.1 != size {
            return None;
        }
        if let Some(block) = self.addresses.get(&position) {
            return Some(*block);
        }
        let end = u32::try_from(size.div_ceil(BLOCK as u64)).ok()?.checked_add(self.blocks)?;
        let block = std::mem::replace(&mut self.blocks, end);
        self.addresses.insert(position, block);
        Some(block)
    }
}

/// Gives the large files in `manifest` their addresses. Inodes lie one behind the other from the root's on.
fn rewrite(manifest: &mut [u8], layout: &mut Layout) {
    let block_at = |field| u32_at(manifest, field).map(|block| block as usize * BLOCK);
    let (Some(root), Some(inodes), Some(shared)) =
        (u16_at(manifest, ROOT_NID), block_at(META_BLKADDR), block_at(XATTR_BLKADDR))
    else {
        return;
    };
    // Shared attributes follow the inodes, in the block in which these end.
    let end = if shared > inodes { shared + BLOCK } else { manifest.len() };
    let mut at = inodes + usize::from(root) * SLOT;
    while at < end.min(manifest.len()) {
        // Writers leave slots empty where an inode would not fit into the rest of a block.
        if manifest[at..].iter().take(SLOT).all(|byte| *byte == 0) {
            at += SLOT;
            continue;
        }
        let Some(inode) = Inode::at(manifest, at) else { break };
        if inode.is_file && inode.layout == CHUNK_BASED && inode.size > layout.small {
            inode.give_address(manifest, shared, layout);
        }
        at = inode.end.next_multiple_of(SLOT);
    }
    manifest[FEATURE_COMPAT] &= !CHECKSUM;
    manifest[BLOCKS..BLOCKS + 4].copy_from_slice(&layout.blocks.to_le_bytes());
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
                _ => 0,
            };
        let is_file = mode & 0o170_000 == 0o100_000;
        (end <= manifest.len()).then_some(Self { is_file, layout, size, chunk_bits, xattrs, body, end })
    }

    fn give_address(&self, manifest: &mut [u8], shared: usize, layout: &mut Layout) {
        let attributes = attributes(manifest, self.xattrs..self.body, shared);
        let find = |name: &[u8]| attributes.iter().find(|attribute| manifest[attribute.name.clone()] == *name);
        let (Some(redirect), Some(metacopy)) = (find(REDIRECT), find(METACOPY)) else { return };
        let Some(first) = layout.address(&manifest[redirect.value.clone()], self.size) else { return };
        for at in [redirect.kind, metacopy.kind] {
            manifest[at] = UNSEEN;
        }
        let blocks_of_chunk = 1u64 << (self.chunk_bits - BLOCK.ilog2());
        for (number, address) in manifest[self.body..self.end].chunks_exact_mut(4).enumerate() {
            // Fits, since the end of the object does.
            let block = (u64::from(first) + number as u64 * blocks_of_chunk) as u32;
            address.copy_from_slice(&block.to_le_bytes());
        }
    }
}

/// An extended attribute, where it lies in the manifest.
struct Attribute {
    /// The byte that says how the name begins.
    kind: usize,
    name: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

/// The attributes of an inode that overlayfs may look at, its own and those that it shares with others.
fn attributes(manifest: &[u8], inode: std::ops::Range<usize>, shared: usize) -> Vec<Attribute> {
    const HEADER: usize = 12;
    let mut found = Vec::new();
    let count = manifest.get(inode.start + 4).copied().filter(|_| !inode.is_empty()).map_or(0, usize::from);
    let ids = (0..count).filter_map(|number| u32_at(manifest, inode.start + HEADER + 4 * number));
    found.extend(ids.filter_map(|id| attribute(manifest, shared + 4 * id as usize)));
    let mut at = inode.start + HEADER + 4 * count;
    while at + 4 <= inode.end {
        let Some(attribute) = attribute(manifest, at) else { break };
        at = attribute.value.end.next_multiple_of(4);
        found.push(attribute);
    }
    // Those of an object that files share may be out of sight already.
    found.retain(|attribute| matches!(manifest[attribute.kind], TRUSTED | UNSEEN));
    found
}

fn attribute(manifest: &[u8], at: usize) -> Option<Attribute> {
    let (name_len, value_len) = (usize::from(*manifest.get(at)?), usize::from(u16_at(manifest, at + 2)?));
    let name = at + 4..at + 4 + name_len;
    let value = name.end..name.end + value_len;
    (value.end <= manifest.len()).then_some(Attribute { kind: at + 1, name, value })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|bytes| u16::from_le_bytes(bytes.try_into().expect("2 bytes")))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::{Algorithm, verity};
    use std::io::Write;

    const SMALL: u64 = 1000;
    const FILE: u16 = 0o100_644;

    /// A manifest in the making: inodes from the superblock's end on, shared attributes in the second block.
    struct Manifest(Vec<u8>);

    impl Manifest {
        fn new() -> Self {
            let mut bytes = vec![0; 2 * BLOCK];
            bytes[FEATURE_COMPAT] = CHECKSUM | 2;
            bytes[ROOT_NID..ROOT_NID + 2].copy_from_slice(&36u16.to_le_bytes());
            bytes[XATTR_BLKADDR] = 1;
            Self(bytes)
        }

        /// Puts a compact inode, with `tail` behind its attributes, into `slot`; returns where its tail is, and the first
        /// slot behind it.
        fn inode(
            &mut self,
            slot: usize,
            (mode, layout): (u16, u16),
            size: u32,
            data: u32,
            xattrs: &[u8],
            tail: &[u8],
        ) -> (usize, usize) {
            let count = if xattrs.is_empty() { 0 } else { (xattrs.len() - 12) / 4 + 1 };
            let mut inode = [layout << 1, count as u16, mode, 1].map(u16::to_le_bytes).concat();
            inode.extend([size, 0, data, 0, 0, 0].map(u32::to_le_bytes).concat());
            inode.extend([xattrs, tail].concat());
            let at = slot * SLOT;
            self.0[at..at + inode.len()].copy_from_slice(&inode);
            (at + 32 + xattrs.len(), (at + inode.len()).div_ceil(SLOT))
        }

        fn file(&mut self, slot: usize, size: u32, xattrs: &[u8]) -> (usize, usize) {
            // One chunk, which no file of ours fills.
            self.inode(slot, (FILE, CHUNK_BASED), size, 10, xattrs, &[0xff; 4])
        }

        fn finish(&self, objects: &[Vec<u8>]) -> ImageFile {
            let mut file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
            file.write_all(&self.0).unwrap();
            let entries = objects.iter().map(|object| (id(object), object.len() as u64)).collect();
            ImageFile::new(file, &ObjectIndex::new(Algorithm::Sha256, entries).unwrap(), SMALL).unwrap()
        }
    }

    fn id(object: &[u8]) -> ObjectId {
        verity::digest(Algorithm::Sha256, object)
    }

    fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut entry = vec![name.len() as u8, TRUSTED];
        entry.extend((value.len() as u16).to_le_bytes());
        entry.extend([name, value].concat());
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    }

    /// What composefs writes of a file with the content `object`.
    fn entries(object: &[u8]) -> Vec<u8> {
        [entry(METACOPY, b"a digest"), entry(REDIRECT, format!("/{}", id(object).object_path()).as_bytes())].concat()
    }

    fn own(object: &[u8]) -> Vec<u8> {
        [vec![0; 12], entries(object)].concat()
    }

    fn shared(ids: &[u32]) -> Vec<u8> {
        let mut xattrs = vec![0; 12];
        xattrs[4] = ids.len() as u8;
        xattrs.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        xattrs
    }

    fn rewritten(image: &ImageFile) -> Vec<u8> {
        let mut bytes = vec![0; image.manifest_len() as usize];
        image.read_manifest(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn large_files_get_addresses_and_the_others_stay_as_they_are() {
        let (large, small, twice) = (vec![1; 5000], vec![2; 1000], vec![3; 9000]);
        let mut manifest = Manifest::new();
        let (_, next) = manifest.inode(36, (0o040_755, FLAT_INLINE), 70, 0, &[], &[b'd'; 70]);
        let (first, next) = manifest.file(next, 5000, &own(&large));
        let (second, next) = manifest.file(next, 1000, &own(&small));
        // Slots stay empty where an inode does not fit into a block.
        let (third, next) = manifest.file(next + 3, 9000, &shared(&[0, 7]));
        let (fourth, next) = manifest.file(next, 9000, &shared(&[0, 7]));
        let (unknown, next) = manifest.file(next, 7777, &own(&[9; 7777]));
        let (other_size, _) = manifest.file(next, 4999, &own(&large));
        let common = entries(&twice);
        assert_eq!(entry(METACOPY, b"a digest").len(), 4 * 7, "which is where the second begins");
        manifest.0[BLOCK..BLOCK + common.len()].copy_from_slice(&common);

        let image = manifest.finish(&[large, small, twice]);
        let bytes = rewritten(&image);
        let address = |at| u32_at(&bytes, at).unwrap();
        assert_eq!([first, third, fourth].map(address), [2, 4, 4], "blocks behind the manifest's two");
        assert_eq!([second, unknown, other_size].map(address), [u32::MAX; 3]);
        // Before each name lie its length, what it begins with, and its value's length in two bytes.
        let names = (3..bytes.len()).filter(|at| bytes[*at..].starts_with(b"overlay."));
        let hidden = names.filter(|at| bytes[at - 3] == UNSEEN).count();
        assert_eq!(hidden, 4, "of one file alone and of two together");
        assert_eq!((bytes[FEATURE_COMPAT], address(BLOCKS)), (2, 7));

        assert_eq!(image.size(), 7 * BLOCK as u64);
        assert_eq!(image.place(100), Some(Place::Manifest(2 * BLOCK as u64 - 100)));
        assert_eq!(
            image.place(2 * BLOCK as u64),
            Some(Place::Object { position: 0, offset: 0, left: 2 * BLOCK as u64 })
        );
        let last = 7 * BLOCK as u64 - 1;
        assert_eq!(image.place(last), Some(Place::Object { position: 2, offset: 3 * BLOCK as u64 - 1, left: 1 }));
        assert_eq!(image.place(last + 1), None);
    }

    #[test]
    fn every_chunk_of_a_file_has_its_address() {
        let object = vec![5; 3 * BLOCK + 1];
        let mut manifest = Manifest::new();
        // Chunks of two blocks.
        let (at, _) = manifest.inode(36, (FILE, CHUNK_BASED), object.len() as u32, 1, &own(&object), &[0xff; 8]);
        let bytes = rewritten(&manifest.finish(&[object]));
        assert_eq!([at, at + 4].map(|at| u32_at(&bytes, at).unwrap()), [2, 4]);
    }

    #[test]
    fn whatever_the_bytes_are_nothing_panics() {
        let object = vec![1; 5000];
        let mut manifest = Manifest::new();
        manifest.file(36, 5000, &own(&object));
        let honest = manifest.0.clone();
        for at in FEATURE_COMPAT..1300 {
            for byte in [0, 1, 0x7f, 0xff] {
                manifest.0.clone_from(&honest);
                manifest.0[at] = byte;
                manifest.finish(std::slice::from_ref(&object));
            }
        }
        for len in [0, 1, 1024, 1100, 1200, BLOCK] {
            manifest.0 = honest[..len].to_vec();
            let mut bytes = honest[..len].to_vec();
            let index = ObjectIndex::new(Algorithm::Sha256, vec![(id(&object), 5000)]).unwrap();
            rewrite(&mut bytes, &mut Layout { index: &index, small: SMALL, blocks: 1, addresses: HashMap::new() });
        }
    }
}
