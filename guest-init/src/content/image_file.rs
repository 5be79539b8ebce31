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
//! What is rewritten is the verified manifest. A file whose attributes are shared with one that gets no address stays as
//! it was, and is read as the small ones are; so does every file of a manifest that is laid out differently than those we
//! know.
//!
//! EROFS' structures: the kernel's `fs/erofs/erofs_fs.h`, and <https://erofs.docs.kernel.org/en/latest/core_ondisk.html>.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::verity::BLOCK;
use rustix::fs::FileType;

use crate::sys;

/// Where the superblock and fields of it are, in bytes.
const SUPERBLOCK: usize = 1024;
const FEATURE_COMPAT: usize = SUPERBLOCK + 8;
const ROOT_NID: usize = SUPERBLOCK + 14;
const INODES: usize = SUPERBLOCK + 16;
const BLOCKS: usize = SUPERBLOCK + 36;
const META_BLKADDR: usize = SUPERBLOCK + 40;
const XATTR_BLKADDR: usize = SUPERBLOCK + 44;

/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the first block has a checksum.
const CHECKSUM: u8 = 1;

/// Objects begin this many bytes or a multiple behind the image's start: the largest page that Linux has on machines with
/// EROFS, so that no page holds the manifest and an object.
const LARGEST_PAGE: usize = 64 << 10;

/// Inodes begin at multiples of this many bytes.
const SLOT: usize = 32;

/// `EROFS_INODE_FLAT_PLAIN`: nothing lies behind the inode.
const FLAT_PLAIN: u16 = 0;
/// `EROFS_INODE_FLAT_INLINE`: the last block's bytes do.
const FLAT_INLINE: u16 = 2;
/// `EROFS_INODE_CHUNK_BASED`: the addresses of the chunks do.
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
    /// By position in the index, the number of the inode of the only file that has the object.
    inodes: HashMap<u32, u32>,
    end: u64,
}

/// What is at an address.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// So many bytes of the manifest.
    Manifest(u64),
    /// So many zeros, between the manifest and the objects.
    Nothing(u64),
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
        let first = manifest_len.next_multiple_of(LARGEST_PAGE as u64);
        let mut addresses =
            Addresses { index, small, blocks: (first / BLOCK as u64) as u32, first_blocks: HashMap::new() };
        let inodes = rewrite(&mut sys::map_shared(&manifest)?, &mut addresses);
        let mut objects: Vec<_> =
            addresses.first_blocks.into_iter().map(|(position, block)| (block, position)).collect();
        objects.sort_unstable();
        let end = u64::from(addresses.blocks) * BLOCK as u64;
        Ok(Self { manifest, manifest_len, objects, inodes, end })
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
        let left = end.checked_sub(offset).filter(|left| *left > 0)?;
        Some(match next.checked_sub(1).map(|found| self.objects[found]) {
            Some((block, position)) => Place::Object { position, offset: offset - start(block), left },
            None => Place::Nothing(left),
        })
    }

    /// The number of the inode of the file that has the object at `position`, if that is read from here, and by one file alone.
    pub fn inode(&self, position: u32) -> Option<u32> {
        self.inodes.get(&position).copied()
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
struct Addresses<'a> {
    index: &'a ObjectIndex,
    small: u64,
    /// Blocks that are taken.
    blocks: u32,
    /// First blocks, by position in the index.
    first_blocks: HashMap<u32, u32>,
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
fn rewrite(manifest: &mut [u8], addresses: &mut Addresses) -> HashMap<u32, u32> {
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
        match inode.content(manifest, shared, addresses) {
            Some(content) => large.push((inode, number, content)),
            None => {
                needed.extend(shared_attributes(manifest, inode.xattrs..inode.body, shared).map(|found| found.kind))
            }
        }
    }
    let in_sight = |content: &Content, needed: &HashSet<usize>| content.kinds.iter().any(|kind| needed.contains(kind));
    let mut numbers = HashMap::new();
    // One of a file's attributes that stays in sight keeps the other there, and so every file that shares that.
    while let Some(found) = large.iter().position(|(.., content)| in_sight(content, &needed)) {
        let (.., content) = large.swap_remove(found);
        needed.extend(content.kinds);
        numbers.insert(content.position, None);
    }
    for (inode, number, content) in large {
        inode.give_address(manifest, &content);
        numbers.entry(content.position).and_modify(|number| *number = None).or_insert(Some(number));
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
    fn content(&self, manifest: &[u8], shared: usize, addresses: &mut Addresses) -> Option<Content> {
        if !self.is_file || self.layout != CHUNK_BASED || self.size <= addresses.small {
            return None;
        }
        let attributes = attributes(manifest, self.xattrs..self.body, shared);
        let find = |name: &[u8]| attributes.iter().find(|attribute| manifest[attribute.name.clone()] == *name);
        let (redirect, metacopy) = (find(REDIRECT)?, find(METACOPY)?);
        let (position, first_block) = addresses.of(&manifest[redirect.value.clone()], self.size)?;
        Some(Content { kinds: [redirect.kind, metacopy.kind], position, first_block })
    }

    fn give_address(&self, manifest: &mut [u8], content: &Content) {
        for kind in content.kinds {
            manifest[kind] = UNSEEN;
        }
        let blocks_of_chunk = 1u64 << (self.chunk_bits - BLOCK.ilog2());
        for (number, address) in manifest[self.body..self.end].chunks_exact_mut(4).enumerate() {
            // Fits, since the end of the object does.
            let block = (u64::from(content.first_block) + number as u64 * blocks_of_chunk) as u32;
            address.copy_from_slice(&block.to_le_bytes());
        }
    }
}

/// Where a large file's bytes are.
struct Content {
    /// Of the attributes that say so, the bytes by which they are seen.
    kinds: [usize; 2],
    /// The object's, in the index.
    position: u32,
    /// In the image.
    first_block: u32,
}

/// An extended attribute, where it lies in the manifest.
struct Attribute {
    /// The byte that says how the name begins.
    kind: usize,
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
    found.retain(|attribute| manifest[attribute.kind] == TRUSTED);
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
            self.0[INODES] += 1;
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

    /// How many of overlayfs' attributes are out of its sight.
    fn hidden(bytes: &[u8]) -> usize {
        // Before each name lie its length, what it begins with, and its value's length in two bytes.
        let names = (3..bytes.len()).filter(|at| bytes[*at..].starts_with(b"overlay."));
        names.filter(|at| bytes[at - 3] == UNSEEN).count()
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
        assert_eq!([first, third, fourth].map(address), [16, 18, 18], "blocks, of which the first page has sixteen");
        assert_eq!([second, unknown, other_size].map(address), [u32::MAX; 3]);
        assert_eq!(hidden(&bytes), 4, "of one file alone and of two together");
        assert_eq!([0, 1, 2].map(|position| image.inode(position)), [Some(40), None, None], "two have the third");
        assert_eq!((bytes[FEATURE_COMPAT], address(BLOCKS)), (2, 21));

        let block = |number: u64| number * BLOCK as u64;
        assert_eq!(image.size(), block(21));
        assert_eq!(image.place(100), Some(Place::Manifest(block(2) - 100)));
        assert_eq!(image.place(block(3)), Some(Place::Nothing(block(13))));
        assert_eq!(image.place(block(16)), Some(Place::Object { position: 0, offset: 0, left: block(2) }));
        let last = Place::Object { position: 2, offset: block(3) - 1, left: 1 };
        assert_eq!(image.place(block(21) - 1), Some(last));
        assert_eq!(image.place(block(21)), None);
    }

    #[test]
    fn an_attribute_that_a_small_file_needs_stays_in_sight() {
        let (large, small) = (vec![1; 5000], vec![2; 1000]);
        let mut manifest = Manifest::new();
        let redirect = |object: &[u8]| entry(REDIRECT, format!("/{}", id(object).object_path()).as_bytes());
        // As a writer may do that knows no digests: an empty attribute, which all files share.
        let common = entry(METACOPY, b"");
        manifest.0[BLOCK..BLOCK + common.len()].copy_from_slice(&common);
        let (at, next) = manifest.file(36, 5000, &[shared(&[0]), redirect(&large)].concat());
        manifest.file(next, 1000, &[shared(&[0]), redirect(&small)].concat());
        let bytes = rewritten(&manifest.finish(&[large.clone(), small]));
        assert_eq!((u32_at(&bytes, at), hidden(&bytes)), (Some(u32::MAX), 0));

        // Nor may one be hidden on behalf of a file that shares only the other with it.
        let mut manifest = Manifest::new();
        let second = redirect(&large);
        manifest.0[BLOCK..BLOCK + common.len()].copy_from_slice(&common);
        manifest.0[BLOCK + 64..BLOCK + 64 + second.len()].copy_from_slice(&second);
        let (_, next) = manifest.file(36, 5000, &[shared(&[16]), entry(METACOPY, b"its own")].concat());
        let (_, next) = manifest.file(next, 5000, &shared(&[0, 16]));
        manifest.file(next, 1000, &[shared(&[0]), redirect(&[2; 1000])].concat());
        assert_eq!(hidden(&rewritten(&manifest.finish(std::slice::from_ref(&large)))), 0);

        // Nor is anything hidden if not all inodes are where they should be.
        let mut manifest = Manifest::new();
        let (at, _) = manifest.file(36, 5000, &own(&large));
        manifest.0[INODES] += 1;
        manifest.0[3000..].fill(0xff);
        let bytes = rewritten(&manifest.finish(&[large]));
        assert_eq!((u32_at(&bytes, at), hidden(&bytes)), (Some(u32::MAX), 0));
    }

    #[test]
    fn every_chunk_of_a_file_has_its_address() {
        let object = vec![5; 3 * BLOCK + 1];
        let mut manifest = Manifest::new();
        // Chunks of two blocks.
        let (at, _) = manifest.inode(36, (FILE, CHUNK_BASED), object.len() as u32, 1, &own(&object), &[0xff; 8]);
        let bytes = rewritten(&manifest.finish(&[object]));
        assert_eq!([at, at + 4].map(|at| u32_at(&bytes, at).unwrap()), [16, 18]);
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
            rewrite(
                &mut bytes,
                &mut Addresses { index: &index, small: SMALL, blocks: 1, first_blocks: HashMap::new() },
            );
        }
    }
}
