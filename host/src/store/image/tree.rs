//! Looking inside an image without mounting it: a reader of the manifest's EROFS tree.
//!
//! The reader is `erofs-rs`, not composefs' own: it compiles everywhere (the composefs crates do only on Linux)
//! and reads an image lazily, so looking up one file does not build a tree of all of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use erofs_rs::EroFS;
use erofs_rs::types::{Inode, Layout};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::{Algorithm, ObjectId, Unverified, Verified};
use rustix::fs::FileType;

use super::listing::{Folder, Listing, Name};
use super::manifest::{DAMAGED, Manifest};
use super::overlay::{REDIRECT, is_whiteout, parse_redirect};
use super::walk::{TreeEntry, Walk};
use crate::store::objects::checked_copy;
use crate::store::objects::source::{Object, ObjectSource};
use crate::text::printable_name;

/// Symbolic links followed before a path counts as a loop, as in Linux.
const MAX_LINKS: usize = 40;

/// The largest file that is read whole, in bytes: kernels and initramfs images are far below.
const MAX_FILE: u64 = 1 << 30;

/// An image's file tree.
pub struct Tree {
    erofs: EroFS<Manifest>,
    algorithm: Algorithm,
}

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Directory,
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// Where its bytes are.
        content: Content,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to.
        target: PathBuf,
    },
    /// A device node, FIFO or socket.
    Special,
}

/// Where the bytes of a regular file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the manifest itself.
    Inline(Vec<u8>),
    /// In an object.
    Object(ObjectId),
    /// Nowhere: the file is zeros.
    Hole,
}

/// What there is in an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Census {
    /// Regular files; the names of a hard-linked one count once.
    pub files: u64,
    /// Folders, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Sizes of all regular files together in bytes, as `du --apparent-size` counts.
    pub bytes: u64,
}

impl Tree {
    /// The tree in `manifest`, the bytes of an EROFS image with this fs-verity digest.
    ///
    /// # Errors
    /// If the bytes do not match the digest or are no EROFS image.
    pub fn new(id: &ObjectId, manifest: Vec<u8>) -> Result<Self> {
        let verified = Unverified::from(manifest).verify_object(id).map_err(|_| {
            anyhow!(
                "the manifest of image {id} is damaged: its content does not match its digest; import the image again"
            )
        });
        Self::of_verified(id, verified?)
    }

    /// The tree in the manifest of the image with this id.
    ///
    /// # Errors
    /// If that is no EROFS image.
    pub(super) fn of_verified(id: &ObjectId, manifest: Verified) -> Result<Self> {
        let erofs = EroFS::new(Manifest(manifest)).with_context(|| format!("the manifest of image {id} is damaged"))?;
        Ok(Self { erofs, algorithm: id.algorithm() })
    }

    /// Whether `path` leads to something, symbolic links followed inside the image.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.lookup(path).is_ok_and(|node| node.is_some())
    }

    /// What `path` leads to, symbolic links followed inside the image (the last one too); `None` for nothing.
    ///
    /// # Errors
    /// If links lead in a circle or the manifest is damaged.
    pub fn lookup(&self, path: impl AsRef<Path>) -> Result<Option<Node>> {
        match self.follow(path.as_ref())? {
            Some((_, inode)) => self.node(&inode).map(Some),
            None => Ok(None),
        }
    }

    /// The names in a folder and what they are, sorted by name; links are not followed. `None` if `dir` leads
    /// to no folder.
    ///
    /// # Errors
    /// As [`Tree::lookup`].
    pub fn list(&self, dir: impl AsRef<Path>) -> Result<Option<Vec<(OsString, Node)>>> {
        let Some((path, inode)) = self.follow(dir.as_ref())? else { return Ok(None) };
        if !inode.is_dir() {
            return Ok(None);
        }
        let mut entries = Vec::new();
        for entry in self.erofs.read_dir(&path)? {
            let entry = entry?;
            if !is_whiteout(&entry.inode) {
                let name = OsString::from_vec(entry.dir_entry.file_name().to_vec());
                entries.push((name, self.node(&entry.inode)?));
            }
        }
        Ok(Some(entries))
    }

    /// The whole content of a regular file, symbolic links followed inside the image, checked against its
    /// object's digest.
    ///
    /// # Errors
    /// If there is no such file, it is larger than 1 GiB, or its object is missing or damaged.
    pub fn read_file(&self, source: &dyn ObjectSource, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let node = self.lookup(path)?.ok_or_else(|| anyhow!("the image has no file {}", shown(path)))?;
        let Node::File { size, content } = node else { bail!("{} is no regular file in the image", shown(path)) };
        ensure!(size <= MAX_FILE, "{} is too large to read whole: {size} bytes", shown(path));
        match content {
            Content::Inline(data) => Ok(data),
            Content::Hole => Ok(vec![0; size as usize]),
            Content::Object(id) => {
                let mut data = Vec::with_capacity(size as usize);
                checked_copy::copy(source, &Object { id, size }, &mut data)
                    .with_context(|| format!("cannot read {}", shown(path)))?;
                Ok(data)
            }
        }
    }

    /// Every object of the image with its size, in the order in which a walk (folders in name order) meets it.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn objects(&self) -> Result<ObjectIndex> {
        let mut objects = Vec::new();
        let mut known = HashSet::new();
        let mut seen = HashSet::new();
        for entry in self.walk("/")? {
            let entry = entry?;
            // Names of one hard-linked file share the inode, so its xattrs are read once.
            if entry.is_file()
                && seen.insert(entry.inode.id())
                && let Some(id) = self.object(&entry)?
                && known.insert(id)
            {
                objects.push((id, entry.inode.data_size()));
            }
        }
        Ok(ObjectIndex::new(self.algorithm, objects)?)
    }

    /// For each object the first path that has it, in the order of a walk, and how many more paths do.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn paths(&self) -> Result<HashMap<ObjectId, (PathBuf, usize)>> {
        let mut paths: HashMap<ObjectId, (PathBuf, usize)> = HashMap::new();
        for entry in self.erofs.walk_dir("/")? {
            let entry = entry?;
            if entry.inode.is_file()
                && let Some(id) = self.redirect(&entry.inode)?
            {
                let first = || (OsString::from_vec(entry.dir_entry.path().into_vec()).into(), 0);
                paths.entry(id).and_modify(|(_, more)| *more += 1).or_insert_with(first);
            }
        }
        Ok(paths)
    }

    /// Counts what there is.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn census(&self) -> Result<Census> {
        let mut census = Census::default();
        let mut seen = HashSet::new();
        for entry in self.walk("/")? {
            let inode = entry?.inode;
            if inode.is_dir() {
                census.directories += 1;
            } else if seen.insert(inode.id()) {
                census.symlinks += u64::from(inode.is_symlink());
                if inode.is_file() {
                    census.files += 1;
                    census.bytes = census.bytes.saturating_add(inode.data_size());
                }
            }
        }
        Ok(census)
    }

    /// The file at `path` without following a symbolic link at its end (those on the way are followed inside the
    /// image, and one at the end too if `path` ends with a slash); `None` if there is none.
    ///
    /// # Errors
    /// If links lead in a circle or the manifest is damaged.
    pub fn entry(&self, path: impl AsRef<Path>) -> Result<Option<TreeEntry>> {
        let path = path.as_ref();
        let last = if path.as_os_str().as_bytes().ends_with(b"/") { LastLink::Follow } else { LastLink::Keep };
        let found = self.resolve(path, last)?;
        Ok(found.map(|(path, inode)| TreeEntry::new(OsString::from_vec(path).into(), 0, inode)))
    }

    /// Everything below `path` in manifest order (a folder before what is in it, names in byte order), `path`'s own
    /// entry first. Nothing for a path that leads nowhere.
    ///
    /// # Errors
    /// As [`Tree::entry`]; each step may find the manifest damaged, see [`Walk`].
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Walk<'_>> {
        Walk::new(&self.erofs, self.entry(path)?, None)
    }

    /// What is below `path`, folder by folder (see [`Listing`]): everything, or the first so many levels, 1 or more.
    ///
    /// # Errors
    /// As [`Tree::walk`], and if `path` leads to no folder.
    pub fn listing(&self, path: impl AsRef<Path>, levels: Option<usize>) -> Result<Listing> {
        Listing::new(Walk::new(&self.erofs, self.entry(path)?, levels)?)
    }

    /// A file of a listing again.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn listed(&self, folder: &Folder, name: &Name) -> Result<TreeEntry> {
        let path = folder.path.join(OsStr::from_bytes(&name.name));
        Ok(TreeEntry::new(path, folder.depth + 1, self.erofs.get_inode(name.inode)?))
    }

    /// The object that holds the content of a regular file, if one does.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn object(&self, entry: &TreeEntry) -> Result<Option<ObjectId>> {
        self.redirect(&entry.inode)
    }

    /// What a file of a walk is: where its content is or where it points to.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn node_of(&self, entry: &TreeEntry) -> Result<Node> {
        self.node(&entry.inode)
    }

    /// Where a symbolic link points to; `None` for anything else.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn target(&self, entry: &TreeEntry) -> Result<Option<PathBuf>> {
        entry.inode.is_symlink().then(|| self.link_target(&entry.inode)).transpose()
    }

    /// A file's extended attributes as a program in a guest sees them.
    ///
    /// # Errors
    /// If the manifest is damaged.
    pub fn attributes(&self, entry: &TreeEntry) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        // An attribute of the overlay that is the image's own is escaped with one more `overlay.`
        // (Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts").
        let unescaped = |(name, value): (Vec<u8>, Vec<u8>)| match name.strip_prefix(b"trusted.overlay.") {
            None => Some((name, value)),
            Some(inner) => inner.starts_with(b"overlay.").then(|| ([b"trusted.".as_slice(), inner].concat(), value)),
        };
        Ok(self.erofs.xattrs_inode(entry.inode)?.into_iter().filter_map(unescaped).collect())
    }

    /// Reads all of a regular file's bytes into `to`, checked against the digest of its object. Little of it is in
    /// memory at a time.
    ///
    /// # Errors
    /// If it is no regular file, its object is missing or damaged (then a part may have been written), or `to`
    /// fails.
    pub fn copy_file(&self, source: &dyn ObjectSource, entry: &TreeEntry, to: &mut dyn std::io::Write) -> Result<()> {
        match self.node(&entry.inode)? {
            Node::File { content: Content::Inline(data), .. } => Ok(to.write_all(&data)?),
            Node::File { size, content: Content::Hole } => checked_copy::zeros(size, to),
            Node::File { size, content: Content::Object(id) } => checked_copy::copy(source, &Object { id, size }, to),
            _ => bail!("{} is no regular file", shown(&entry.path)),
        }
    }

    /// Walks `path` from the image's root as `chroot` would: neither `..` nor absolute links lead out.
    /// Returns the path without links and its inode.
    fn follow(&self, path: &Path) -> Result<Option<(Vec<u8>, Inode)>> {
        self.resolve(path, LastLink::Follow)
    }

    fn resolve(&self, path: &Path, last: LastLink) -> Result<Option<(Vec<u8>, Inode)>> {
        let mut todo: Vec<Vec<u8>> = components(path.as_os_str().as_bytes());
        let mut links = 0;
        let mut here: Vec<(Vec<u8>, Inode)> = Vec::new();
        let root = self.erofs.get_inode(self.erofs.super_block().root_inode_id())?;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    here.pop();
                    continue;
                }
                _ => {}
            }
            let dir = here.last().map_or(&root, |(_, inode)| inode);
            if !dir.is_dir() {
                return Ok(None);
            }
            let Some(inode) = self.child(&join(&here), &name)? else { return Ok(None) };
            if inode.is_symlink() && (last == LastLink::Follow || !todo.is_empty()) {
                links += 1;
                ensure!(links <= MAX_LINKS, "too many symbolic links on the way to {}", shown(path));
                let target = self.erofs.read_link_inode(inode)?.into_vec();
                if target.starts_with(b"/") {
                    here.clear();
                }
                todo.extend(components(&target));
            } else {
                here.push((name, inode));
            }
        }
        let inode = here.last().map_or(root, |(_, inode)| *inode);
        Ok(Some((join(&here), inode)))
    }

    fn child(&self, dir: &[u8], name: &[u8]) -> Result<Option<Inode>> {
        for entry in self.erofs.read_dir(dir).context(DAMAGED)? {
            let entry = entry.context(DAMAGED)?;
            if entry.dir_entry.file_name() == name {
                return Ok(Some(entry.inode).filter(|inode| !is_whiteout(inode)));
            }
        }
        Ok(None)
    }

    fn node(&self, inode: &Inode) -> Result<Node> {
        Ok(match inode.file_type() {
            FileType::Directory => Node::Directory,
            FileType::Symlink => Node::Symlink { target: self.link_target(inode)? },
            FileType::RegularFile => Node::File { size: inode.data_size(), content: self.content(inode)? },
            _ => Node::Special,
        })
    }

    fn link_target(&self, inode: &Inode) -> Result<PathBuf> {
        Ok(OsString::from_vec(self.erofs.read_link_inode(*inode)?.into_vec()).into())
    }

    fn content(&self, inode: &Inode) -> Result<Content> {
        if let Some(id) = self.redirect(inode)? {
            return Ok(Content::Object(id));
        }
        if inode.layout() == Some(Layout::ChunkBased) {
            return Ok(Content::Hole);
        }
        // No allocation is larger than the manifest, whatever size a damaged inode claims.
        ensure!(inode.data_size() <= self.erofs_len(), "the manifest is damaged: inode {} is too large", inode.id());
        let mut data = vec![0; inode.data_size() as usize];
        let file = self.erofs.open_inode_file(*inode)?;
        let mut filled = 0;
        while filled < data.len() {
            let read = file.read_at(&mut data[filled..], filled as u64)?;
            ensure!(read > 0, "the manifest is damaged: inode {} ends early", inode.id());
            filled += read;
        }
        Ok(Content::Inline(data))
    }

    fn erofs_len(&self) -> u64 {
        self.erofs.super_block().block_count() << self.erofs.super_block().blk_size_bits
    }

    /// The object that holds a regular file's content, if one does.
    fn redirect(&self, inode: &Inode) -> Result<Option<ObjectId>> {
        let xattrs = self.erofs.xattrs_inode(*inode)?;
        let Some(redirect) = xattrs.get(REDIRECT) else { return Ok(None) };
        let id = parse_redirect(redirect).filter(|id| id.algorithm() == self.algorithm);
        id.map(Some).with_context(|| {
            format!("the manifest is damaged: it redirects to '{}', which is no object", printable_name(redirect))
        })
    }
}

/// The names of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// What to do with a symbolic link at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Follow,
    Keep,
}

fn shown(path: &Path) -> String {
    printable_name(path.as_os_str().as_bytes())
}

fn join(path: &[(Vec<u8>, Inode)]) -> Vec<u8> {
    let mut joined = vec![];
    for (name, _) in path {
        joined.push(b'/');
        joined.extend_from_slice(name);
    }
    if joined.is_empty() { b"/".to_vec() } else { joined }
}

#[cfg(test)]
mod tests {
    use lazyroot_proto::verity;

    use super::*;

    #[test]
    fn what_is_no_erofs_image_is_refused() {
        for bytes in [vec![], vec![0; 100], vec![0; 8192]] {
            let id = verity::digest(Algorithm::Sha256, &bytes);
            assert!(Tree::new(&id, bytes).is_err());
        }
        let id = verity::digest(Algorithm::Sha256, b"other");
        let error = Tree::new(&id, vec![1]).err().unwrap();
        assert!(error.to_string().contains("does not match its digest"), "{error}");
    }
}
