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
//! [`crate::content::erofs`] knows the manifest's structures.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::verified::Verified;
use lazyroot_proto::verity::BLOCK;

use crate::content::erofs::{Addresses, rewrite};
use crate::content::metadata::Manifest;
use crate::sys;

/// Objects begin this many bytes or a multiple behind the image's start: the largest page that Linux has on machines with
/// EROFS, so that no page holds the manifest and an object.
const LARGEST_PAGE: usize = 64 << 10;

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
    Gap(u64),
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
    /// The image of `manifest`, which gets its addresses, with the objects of `index` of more than `small` bytes.
    ///
    /// # Errors
    /// If the manifest cannot be mapped into memory.
    pub fn new(manifest: Manifest, index: &ObjectIndex, small: u64) -> io::Result<Self> {
        let manifest = manifest.into_file();
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
            None => Place::Gap(left),
        })
    }

    /// The number of the inode of the file that has the object at `position`, if that is read from here, and by one file alone.
    pub fn inode(&self, position: u32) -> Option<u32> {
        self.inodes.get(&position).copied()
    }

    /// `len` bytes of the manifest from byte `offset` on.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn read_manifest(&self, offset: u64, len: usize) -> io::Result<ImageBytes> {
        let mut bytes = ImageBytes::default();
        bytes.push_manifest(self, offset, len)?;
        Ok(bytes)
    }
}

/// Bytes of an image file: of the manifest, which was verified before its addresses were written into it, of verified
/// objects, and the zeros between them. They are made of nothing else.
#[derive(Default)]
pub struct ImageBytes(Vec<u8>);

impl ImageBytes {
    /// Adds `len` bytes of the manifest of `image` from byte `offset` on.
    ///
    /// # Errors
    /// If it is shorter.
    pub fn push_manifest(&mut self, image: &ImageFile, offset: u64, len: usize) -> io::Result<()> {
        let end = self.0.len();
        self.0.resize(end + len, 0);
        image.manifest.read_exact_at(&mut self.0[end..], offset)
    }

    /// Adds `len` zeros, which lie between objects and behind the end of each in its last block.
    pub fn push_zeros(&mut self, len: usize) {
        self.0.resize(self.0.len() + len, 0);
    }

    /// Adds bytes of an object.
    pub fn push_object(&mut self, bytes: &Verified) {
        self.0.extend_from_slice(bytes);
    }
}

impl std::ops::Deref for ImageBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::erofs::{
        BLOCKS, CHECKSUM, CHUNK_BASED, FEATURE_COMPAT, FLAT_INLINE, INODES, LUSTRE, METACOPY, REDIRECT, ROOT_NID, SLOT,
        TRUSTED, XATTR_BLKADDR, u32_at,
    };
    use lazyroot_proto::{Algorithm, ObjectId, verity};

    const SMALL: u64 = 1000;
    const FILE: u16 = 0o100_644;

    /// A manifest in the making: inodes from the superblock's end on, shared attributes in the second block.
    struct Layout(Vec<u8>);

    impl Layout {
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
            let entries = objects.iter().map(|object| (id(object), object.len() as u64)).collect();
            ImageFile::new(Manifest::of(&self.0), &ObjectIndex::new(Algorithm::Sha256, entries).unwrap(), SMALL)
                .unwrap()
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
        image.read_manifest(0, image.manifest_len() as usize).unwrap().to_vec()
    }

    /// How many of overlayfs' attributes are out of its sight.
    fn hidden(bytes: &[u8]) -> usize {
        // Before each name lie its length, what it begins with, and its value's length in two bytes.
        let names = (3..bytes.len()).filter(|at| bytes[*at..].starts_with(b"overlay."));
        names.filter(|at| bytes[at - 3] == LUSTRE).count()
    }

    #[test]
    fn large_files_get_addresses_and_the_others_stay_as_they_are() {
        let (large, small, twice) = (vec![1; 5000], vec![2; 1000], vec![3; 9000]);
        let mut manifest = Layout::new();
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
        assert_eq!(image.place(block(3)), Some(Place::Gap(block(13))));
        assert_eq!(image.place(block(16)), Some(Place::Object { position: 0, offset: 0, left: block(2) }));
        let last = Place::Object { position: 2, offset: block(3) - 1, left: 1 };
        assert_eq!(image.place(block(21) - 1), Some(last));
        assert_eq!(image.place(block(21)), None);
    }

    #[test]
    fn an_attribute_that_a_small_file_needs_stays_in_sight() {
        let (large, small) = (vec![1; 5000], vec![2; 1000]);
        let mut manifest = Layout::new();
        let redirect = |object: &[u8]| entry(REDIRECT, format!("/{}", id(object).object_path()).as_bytes());
        // As a writer may do that knows no digests: an empty attribute, which all files share.
        let common = entry(METACOPY, b"");
        manifest.0[BLOCK..BLOCK + common.len()].copy_from_slice(&common);
        let (at, next) = manifest.file(36, 5000, &[shared(&[0]), redirect(&large)].concat());
        manifest.file(next, 1000, &[shared(&[0]), redirect(&small)].concat());
        let bytes = rewritten(&manifest.finish(&[large.clone(), small]));
        assert_eq!((u32_at(&bytes, at), hidden(&bytes)), (Some(u32::MAX), 0));

        // Nor may one be hidden on behalf of a file that shares only the other with it.
        let mut manifest = Layout::new();
        let second = redirect(&large);
        manifest.0[BLOCK..BLOCK + common.len()].copy_from_slice(&common);
        manifest.0[BLOCK + 64..BLOCK + 64 + second.len()].copy_from_slice(&second);
        let (_, next) = manifest.file(36, 5000, &[shared(&[16]), entry(METACOPY, b"its own")].concat());
        let (_, next) = manifest.file(next, 5000, &shared(&[0, 16]));
        manifest.file(next, 1000, &[shared(&[0]), redirect(&[2; 1000])].concat());
        assert_eq!(hidden(&rewritten(&manifest.finish(std::slice::from_ref(&large)))), 0);

        // Nor is anything hidden if not all inodes are where they should be.
        let mut manifest = Layout::new();
        let (at, _) = manifest.file(36, 5000, &own(&large));
        manifest.0[INODES] += 1;
        manifest.0[3000..].fill(0xff);
        let bytes = rewritten(&manifest.finish(&[large]));
        assert_eq!((u32_at(&bytes, at), hidden(&bytes)), (Some(u32::MAX), 0));
    }

    #[test]
    fn every_chunk_of_a_file_has_its_address() {
        let object = vec![5; 3 * BLOCK + 1];
        let mut manifest = Layout::new();
        // Chunks of two blocks.
        let (at, _) = manifest.inode(36, (FILE, CHUNK_BASED), object.len() as u32, 1, &own(&object), &[0xff; 8]);
        let bytes = rewritten(&manifest.finish(&[object]));
        assert_eq!([at, at + 4].map(|at| u32_at(&bytes, at).unwrap()), [16, 18]);
    }

    #[test]
    fn whatever_the_bytes_are_nothing_panics() {
        let object = vec![1; 5000];
        let mut manifest = Layout::new();
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
