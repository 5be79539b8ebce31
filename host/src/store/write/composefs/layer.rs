//! Images made of another and what a guest changed: the upper layer of its overlayfs, merged as the kernel would show it.
//!
//! The layer is a tar stream ([`lazyroot_archive::pack_layer`]) in which a folder comes before what is in it. What it says
//! of lower files (whiteouts, opaque folders, renames, files of which only the metadata changed) is explained in the
//! kernel's `Documentation/filesystems/overlayfs.rst`. Content that did not change is neither read nor written.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use composefs::INLINE_CONTENT_MAX_V0;
use composefs::erofs::reader::erofs_to_filesystem;
use composefs::fsverity::FsVerityHashValue;
use composefs::generic_tree::LeafId;
use composefs::repository::Repository;
use composefs::tree::{Directory, FileSystem, Inode, LeafContent, RegularFile, Stat};
use lazyroot_archive::{LAYER, LAYER_XATTR};
use tar::{Archive, Entry, EntryType};

/// What lazyroot itself or the first boot writes, different in each VM: these stay as the image has them.
const OF_THE_VM: &[&str] = &["etc/hostname", "etc/machine-id", "etc/resolv.conf"];

/// Attributes of overlayfs's own, and as which an overlayfs inside the guest finds its own.
const OVERLAY: &[u8] = b"trusted.overlay.";
const OVERLAY_INSIDE: &[u8] = b"trusted.overlay.overlay.";

/// The image `base` with the changes in `layer`; objects that are not there yet go to the repository.
///
/// # Errors
/// If the base or the layer is damaged, or the repository cannot be written.
pub(super) fn merge<Hash: FsVerityHashValue>(
    repository: &Repository<Hash>,
    base: &[u8],
    layer: impl Read,
) -> Result<FileSystem<Hash>> {
    let lower = erofs_to_filesystem::<Hash>(base)?;
    let mut merger = Merger { repository, tree: lower.clone(), lower, folders: HashMap::new() };
    let mut archive = Archive::new(layer);
    for entry in archive.entries()? {
        merger.add(entry?)?;
    }
    // The end of an archive comes before the end of the stream, which tells whether that is whole.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    ensure!(!merger.folders.is_empty(), "a damaged layer: there is nothing in it");
    let mut tree = merger.tree;
    // What nothing leads to any more.
    tree.compact();
    Ok(tree)
}

struct Merger<'a, Hash: FsVerityHashValue> {
    repository: &'a Repository<Hash>,
    /// The image, in which renamed folders and files are looked up.
    lower: FileSystem<Hash>,
    /// The image with what was changed so far. Its first leaves are those of `lower`.
    tree: FileSystem<Hash>,
    /// Each folder of the layer, and the one of the image that it adds to.
    folders: HashMap<PathBuf, Option<PathBuf>>,
}

/// What an entry says besides its content.
struct Attributes {
    stat: Stat,
    overlay: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<Hash: FsVerityHashValue> Merger<'_, Hash> {
    fn add(&mut self, mut entry: Entry<impl Read>) -> Result<()> {
        let path = relative(&entry.path()?)?;
        let Attributes { stat, overlay } = attributes(&mut entry)?;
        let shown = path.display().to_string();
        if OF_THE_VM.iter().any(|own| path == Path::new(own)) {
            return Ok(());
        }
        if path.as_os_str().is_empty() {
            ensure!(entry.header().entry_type().is_dir(), "a damaged layer: it is no folder");
            self.tree.root.stat = stat;
            self.folders.insert(path, Some(PathBuf::new()));
            return Ok(());
        }
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let lower_parent = self.folders.get(parent);
        let lower_parent = lower_parent.with_context(|| format!("a damaged layer: {shown} comes before its folder"))?;
        let kind = entry.header().entry_type();
        // Where the image has what this one changes. A file with content of its own may still say where it came from.
        let moved = overlay.get(&b"redirect"[..]).filter(|_| kind.is_dir() || overlay.contains_key(&b"metacopy"[..]));
        let origin = match moved {
            Some(to) => Some(redirected(lower_parent.as_deref(), to).with_context(|| format!("{shown} was renamed"))?),
            None => lower_parent.as_ref().map(|parent| parent.join(name)),
        };
        let content = match kind {
            EntryType::Directory => {
                let opaque = overlay.get(&b"opaque"[..]).is_some_and(|value| value == b"y");
                let lower = origin.filter(|origin| !opaque && self.lower_folder(origin).is_some());
                let mut folder = match lower.as_ref().and_then(|lower| self.lower_folder(lower)) {
                    Some(lower) => lower.clone(),
                    None => Directory::new(stat.clone()),
                };
                folder.stat = stat;
                self.folder(parent)?.insert(name, Inode::Directory(Box::new(folder)));
                self.folders.insert(path, lower);
                return Ok(());
            }
            EntryType::Link => {
                let target = entry.link_name()?.context("a damaged layer: a link to nothing")?;
                let target = relative(&target)?;
                let id = self.tree.root.leaf_id_of(&target).with_context(|| format!("{shown} is a link"))?;
                self.folder(parent)?.insert(name, Inode::leaf(id));
                return Ok(());
            }
            EntryType::Char if device(&entry)? == 0 => {
                self.folder(parent)?.remove(name);
                return Ok(());
            }
            EntryType::Char => LeafContent::CharacterDevice(device(&entry)?),
            EntryType::Block => LeafContent::BlockDevice(device(&entry)?),
            EntryType::Fifo => LeafContent::Fifo,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().context("a damaged layer: a link to nothing")?;
                LeafContent::Symlink(OsString::from_vec(target.into_owned()).into_boxed_os_str())
            }
            EntryType::Regular if overlay.contains_key(&b"metacopy"[..]) => {
                let origin = origin.with_context(|| format!("a damaged layer: {shown} has no content"))?;
                let id = self.lower.root.leaf_id_of(&origin).with_context(|| format!("{shown} has no content"))?;
                self.lower.leaf(id).content.clone()
            }
            EntryType::Regular => LeafContent::Regular(self.store(&mut entry).with_context(|| shown.clone())?),
            other => bail!("a damaged layer: {shown} is of the kind {other:?}"),
        };
        let id = self.tree.push_leaf(stat, content);
        self.folder(parent)?.insert(name, Inode::leaf(id));
        Ok(())
    }

    fn store(&self, entry: &mut Entry<impl Read>) -> Result<RegularFile<Hash>> {
        let size = entry.size();
        if size > INLINE_CONTENT_MAX_V0 as u64 {
            return Ok(RegularFile::External(
                self.repository.ensure_object_from_reader(whole(entry, size), size)?,
                size,
            ));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        ensure!(content.len() as u64 == size, "the layer stops before its end");
        Ok(RegularFile::Inline(content.into_boxed_slice()))
    }

    fn folder(&mut self, path: &Path) -> Result<&mut Directory<Hash>> {
        Ok(self.tree.root.get_directory_mut(path.as_os_str())?)
    }

    fn lower_folder(&self, path: &Path) -> Option<&Directory<Hash>> {
        self.lower.root.get_directory_opt(path.as_os_str()).ok().flatten()
    }
}

trait LeafOf {
    /// The leaf at a path.
    fn leaf_id_of(&self, path: &Path) -> Result<LeafId>;
}

impl<Hash: FsVerityHashValue> LeafOf for Directory<Hash> {
    fn leaf_id_of(&self, path: &Path) -> Result<LeafId> {
        let (dir, name) = self.split(path.as_os_str())?;
        Ok(dir.leaf_id(name)?)
    }
}

/// A reader that fails where the stream ends too early: half a file is none.
fn whole(reader: impl Read, size: u64) -> impl Read {
    struct Whole<R>(R, u64);
    impl<R: Read> Read for Whole<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read(buffer)?;
            self.1 = self.1.saturating_sub(count as u64);
            if count == 0 && self.1 > 0 && !buffer.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the layer stops before its end"));
            }
            Ok(count)
        }
    }
    Whole(reader, size)
}

/// A path below the layer's own folder, without anything that leads elsewhere.
fn relative(path: &Path) -> Result<PathBuf> {
    let inner = path.strip_prefix(LAYER).ok().filter(|inner| is_plain(inner));
    inner.map(Path::to_owned).with_context(|| format!("a damaged layer: the path {}", path.display()))
}

fn is_plain(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Where the image has what was renamed: from its root, or beside where it is now.
fn redirected(lower_parent: Option<&Path>, to: &[u8]) -> Result<PathBuf> {
    let to = Path::new(OsStr::from_bytes(to));
    let path = match to.strip_prefix("/") {
        Ok(absolute) => Some(absolute.to_owned()),
        Err(_) => lower_parent.map(|parent| parent.join(to)),
    };
    path.filter(|path| is_plain(path)).with_context(|| format!("a damaged layer: from {}", to.display()))
}

fn attributes(entry: &mut Entry<impl Read>) -> Result<Attributes> {
    let header = entry.header();
    let mut stat = Stat {
        st_mode: header.mode()? & 0o7777,
        st_uid: u32::try_from(header.uid()?)?,
        st_gid: u32::try_from(header.gid()?)?,
        // In a record: a header knows no time before 1970.
        st_mtim_sec: 0,
        st_mtim_nsec: 0,
        xattrs: BTreeMap::new(),
    };
    let mut overlay = BTreeMap::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        let Some(name) = key.strip_prefix(LAYER_XATTR.as_bytes()) else {
            if key == b"mtime" {
                (stat.st_mtim_sec, stat.st_mtim_nsec) = time(value).context("a damaged layer: a time")?;
            }
            continue;
        };
        let (name, value) = unhex(name).zip(unhex(value)).context("a damaged layer: an attribute")?;
        let name = match (name.strip_prefix(OVERLAY_INSIDE), name.strip_prefix(OVERLAY)) {
            (Some(inside), _) => [OVERLAY, inside].concat(),
            (None, Some(own)) => {
                overlay.insert(own.to_vec(), value);
                continue;
            }
            (None, None) => name.to_vec(),
        };
        stat.xattrs.insert(OsString::from_vec(name).into_boxed_os_str(), value.into_boxed_slice());
    }
    Ok(Attributes { stat, overlay })
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    text.len().is_multiple_of(2).then(|| text.chunks(2).map(byte).collect())?
}

/// Seconds and nanoseconds of `SECONDS.NANOSECONDS`.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (seconds, nanoseconds) = std::str::from_utf8(text).ok()?.split_once('.')?;
    Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
}

fn device(entry: &Entry<impl Read>) -> Result<u64> {
    let header = entry.header();
    let number =
        |part: io::Result<Option<u32>>| part.ok().flatten().context("a damaged layer: a device without number");
    Ok(rustix::fs::makedev(number(header.device_major())?, number(header.device_minor())?))
}
