//! Trees as tar streams, for copies into guests and out of them: modes, times, links and extended attributes are kept,
//! and whoever copies owns the copy. Both ends use the same code; neither trusts what the other sends.
//!
//! A stream has one tree, whose top-level entry has its name. It is the pax format, extended attributes as
//! `SCHILY.xattr.*` records, as GNU tar and libarchive write and read them.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

/// What a record of an extended attribute is called, before the attribute's name.
const XATTR: &str = "SCHILY.xattr.";

/// The same in a layer, where names and values are in hex: overlayfs's own are binary, readers take a newline in a record
/// for its end, and an equals sign in a name for the name's.
pub const LAYER_XATTR: &str = "LAZYROOT.xattr.";

/// Has its content below: in an upper layer it is a hole.
const METACOPY: &str = "trusted.overlay.metacopy";

/// The name of the tree in a stream of [`pack_layer`].
pub const LAYER: &str = "layer";

/// What may be in a tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kinds {
    /// Files, folders and links.
    Plain,
    /// Devices and pipes too.
    All,
}

/// Headers are this long, contents are filled up to a multiple of it, and blocks of zeros end an archive (pax).
const BLOCK: u64 = 512;

/// Writes the tree at `path` (a file, a link, or a folder with all in it) to `out`, under the path's own name.
///
/// # Errors
/// If anything cannot be read or is a device, or `out` fails.
pub fn pack(path: &Path, out: impl Write) -> io::Result<()> {
    let name = match path.file_name() {
        Some(name) => PathBuf::from(name),
        // `/`, `.` and `a/..` have no name of their own.
        None => fs::canonicalize(path)?.file_name().map_or_else(|| "root".into(), PathBuf::from),
    };
    pack_as(path, &name, Kinds::Plain, out)
}

/// Writes the upper layer of an overlayfs in the folder `path` to `out`, with all that is in it: devices and pipes, which
/// [`unpack`] refuses, and times to the nanosecond. The tree's name is [`LAYER`].
///
/// # Errors
/// If anything cannot be read, or `out` fails.
pub fn pack_layer(path: &Path, out: impl Write) -> io::Result<()> {
    pack_as(path, Path::new(LAYER), Kinds::All, out)
}

fn pack_as(path: &Path, name: &Path, kinds: Kinds, out: impl Write) -> io::Result<()> {
    let failed = Cell::new(false);
    let mut packer = Packer { out: Builder::new(Gate { out, shut: &failed }), links: HashMap::new(), kinds };
    // Dropped, a builder ends its archive: what is not whole must not look so.
    packer.add(path, name).inspect_err(|_| failed.set(true))?;
    packer.out.into_inner()?.flush()
}

/// Lets bytes through until it is shut.
struct Gate<'a, W> {
    out: W,
    shut: &'a Cell<bool>,
}

impl<W: Write> Write for Gate<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.shut.get() { Err(io::ErrorKind::BrokenPipe.into()) } else { self.out.write(data) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Packer<W: Write> {
    out: Builder<W>,
    /// The first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    kinds: Kinds,
}

impl<W: Write> Packer<W> {
    fn add(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let meta = fs::symlink_metadata(path).map_err(about)?;
        let kind = meta.file_type();
        if kind.is_socket() && self.kinds == Kinds::Plain {
            // It would be nobody's there.
            return Ok(());
        }
        let special = kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket();
        if special && self.kinds == Kinds::Plain {
            return Err(about(io::Error::new(io::ErrorKind::Unsupported, "a device or pipe is not copied")));
        }
        let mut header = Header::new_ustar();
        header.set_metadata(&meta);
        if kind.is_socket() {
            // A whiteout, whose device is 0:0 as a socket's: it would be nobody's in an image either, and hides what the
            // image has there.
            header.set_entry_type(EntryType::Char);
        }
        if special {
            let device = meta.rdev() as rustix::fs::Dev;
            header.set_device_major(rustix::fs::major(device))?;
            header.set_device_minor(rustix::fs::minor(device))?;
            header.set_size(0);
        }
        if kind.is_file() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.out.append_link(&mut header, name, first);
            }
            self.links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        self.records(path, &meta).map_err(about)?;
        if kind.is_symlink() {
            self.out.append_link(&mut header, name, fs::read_link(path).map_err(about)?)
        } else if special {
            self.out.append_data(&mut header, name, io::empty())
        } else if kind.is_file() {
            if self.kinds == Kinds::All && xattr::get(path, METACOPY).map_err(about)?.is_some() {
                header.set_size(0);
                return self.out.append_data(&mut header, name, io::empty());
            }
            let file = File::open(path).map_err(about)?;
            // A file that grows meanwhile is cut, one that shrinks is filled up: the header has its length.
            self.out.append_data(&mut header, name, file.chain(io::repeat(0)).take(meta.len()))
        } else {
            self.out.append_data(&mut header, name, io::empty())?;
            let mut entries = fs::read_dir(path).map_err(about)?.collect::<io::Result<Vec<_>>>().map_err(about)?;
            entries.sort_by_key(fs::DirEntry::file_name);
            entries.iter().try_for_each(|entry| self.add(&entry.path(), &name.join(entry.file_name())))
        }
    }

    /// What a header has no room for.
    fn records(&mut self, path: &Path, meta: &fs::Metadata) -> io::Result<()> {
        let mut records = Vec::new();
        if self.kinds == Kinds::All {
            records.push(("mtime".to_owned(), format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()).into_bytes()));
        }
        let names = match xattr::list(path) {
            Ok(names) => names.collect(),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => vec![],
            Err(error) => return Err(error),
        };
        for name in names {
            let Some(value) = xattr::get(path, &name)? else { continue };
            match (self.kinds, name.to_str()) {
                (Kinds::Plain, Some(text)) => records.push((format!("{XATTR}{text}"), value)),
                // Names are text; one that is not cannot be in a pax record.
                (Kinds::Plain, None) => (),
                (Kinds::All, _) => {
                    records.push((format!("{LAYER_XATTR}{}", hex(name.as_bytes())), hex(&value).into_bytes()));
                }
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        self.out.append_pax_extensions(records.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a stream of [`pack`] and puts its tree where `cp -a` would: into `target` if that is a folder, else in its place.
/// Nothing outside is touched, whatever the stream says; a tree that takes `target`'s place does so when it is whole. All
/// is the caller's then, and the mode bits in `without` are cleared.
///
/// # Errors
/// If the stream is damaged or unfinished, or anything cannot be written.
pub fn unpack(stream: impl Read, target: &Path, without: u32) -> io::Result<()> {
    unpack_to(stream, target, without).map_err(|error| {
        // The archive's own errors name the file, and hide why in what caused them.
        let mut text = error.to_string();
        let mut cause = error.get_ref().and_then(|inner| inner.source());
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        io::Error::new(error.kind(), text)
    })
}

fn unpack_to(stream: impl Read, target: &Path, without: u32) -> io::Result<()> {
    let taken = Cell::new(0);
    let mut archive = Archive::new(Counted { stream, taken: &taken });
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(false);
    archive.set_mask(without);
    archive.set_unpack_xattrs(true);
    if target.is_dir() {
        return unpack_in(&mut archive, &taken, target).map(|_| ());
    }
    let parent = match target.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no place to copy to was named")),
    };
    if !parent.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no folder {}", parent.display())));
    }
    if target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no folder {}", target.display())));
    }
    // In the same file system, so that it can be moved.
    let scratch = tempfile::Builder::new().prefix(".lazyroot-").tempdir_in(parent)?;
    let name = unpack_in(&mut archive, &taken, scratch.path())?;
    fs::rename(scratch.path().join(name), target)
}

/// Counts the bytes that are read.
struct Counted<'a, R> {
    stream: R,
    taken: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(data)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}

/// Unpacks into a folder; returns the name of the stream's one tree. `taken` is how much of the archive has been read.
fn unpack_in(archive: &mut Archive<impl Read>, taken: &Cell<u64>, target: &Path) -> io::Result<PathBuf> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a damaged archive: {what}"));
    let mut top: Option<PathBuf> = None;
    // Folders' own modes last: one that cannot be written could not be filled.
    let mut folders = Vec::new();
    let mut end = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        end = (entry.raw_file_position() + entry.size()).next_multiple_of(BLOCK);
        let path = entry.path()?.into_owned();
        let first = path.iter().next().map(PathBuf::from).unwrap_or_default();
        if *top.get_or_insert_with(|| first.clone()) != first {
            return Err(damaged("more than one tree"));
        }
        let relative: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        if relative != path.components().as_path() {
            return Err(damaged("a path that leads out of it"));
        }
        match entry.header().entry_type() {
            // Made now with an everyday mode, for what is in it; the entry follows below.
            EntryType::Directory => {
                make_folders(target, &relative)?;
                folders.push(entry);
                continue;
            }
            EntryType::Link => {
                make_folders(target, relative.parent().unwrap_or(Path::new("")))?;
                // The other kinds replace a file by themselves. What else is in the way is named below.
                let _ = fs::remove_file(target.join(&relative));
            }
            EntryType::Regular | EntryType::Symlink => (),
            _ => return Err(damaged("an entry that is no file, folder or link")),
        }
        if !entry.unpack_in(target)? {
            return Err(damaged("a path that leads out of it"));
        }
    }
    // The reader also takes a stream that stops between two entries for a whole one. Only a block of zeros ends one.
    if taken.get() < end + BLOCK {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive stops before its end"));
    }
    for mut folder in folders.into_iter().rev() {
        folder.unpack_in(target)?;
    }
    top.ok_or_else(|| damaged("there is nothing in it"))
}

/// Makes the folders of a path below `target` that are not there; a link on the way is none of them.
fn make_folders(target: &Path, relative: &Path) -> io::Result<()> {
    let mut dir = target.to_owned();
    for part in relative {
        dir.push(part);
        match fs::symlink_metadata(&dir) {
            Ok(meta) if meta.is_dir() => (),
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is no folder", dir.display())));
            }
            Err(_) => fs::create_dir(&dir)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn packed(path: &Path) -> Vec<u8> {
        let mut stream = Vec::new();
        pack(path, &mut stream).unwrap();
        stream
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("locked")).unwrap();
        let long = "n".repeat(200);
        fs::write(tree.join(&long), b"long name").unwrap();
        fs::write(tree.join("locked/file"), vec![7; 100_000]).unwrap();
        fs::hard_link(tree.join("locked/file"), tree.join("twin")).unwrap();
        symlink("/nowhere", tree.join("link")).unwrap();
        fs::set_permissions(tree.join(&long), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(tree.join("locked"), fs::Permissions::from_mode(0o555)).unwrap();
        let attributes = xattr::set(tree.join("twin"), "user.colour", b"\x00blue").is_ok();
        let stream = packed(&tree);
        let target = dir.path().join("copy");
        unpack(&*stream, &target, 0).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(fs::read(target.join(&long)).unwrap(), b"long name");
        assert_eq!((mode(&target.join(&long)), mode(&target.join("locked"))), (0o4711, 0o555));
        assert_eq!(fs::read(target.join("locked/file")).unwrap(), vec![7; 100_000]);
        assert_eq!(fs::metadata(target.join("twin")).unwrap().nlink(), 2);
        assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("/nowhere"));
        if attributes {
            assert_eq!(xattr::get(target.join("twin"), "user.colour").unwrap().unwrap(), b"\x00blue");
        }
        // Into a folder that is there, under its own name; twice, over itself.
        let into = dir.path().join("into");
        fs::create_dir(&into).unwrap();
        for _ in 0..2 {
            unpack(&*stream, &into, 0).unwrap();
        }
        assert!(into.join("tree/link").is_symlink());
        for locked in [&tree, &target, &into.join("tree")] {
            fs::set_permissions(locked.join("locked"), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn a_hostile_stream_writes_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let hostile = |entries: &[(&str, EntryType, &str)]| {
            let mut out = Builder::new(Vec::new());
            for (name, kind, link) in entries {
                let mut header = Header::new_gnu();
                header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
                header.set_entry_type(*kind);
                header.set_mode(0o755);
                header.set_size(0);
                if !link.is_empty() {
                    header.set_link_name(link).unwrap();
                }
                header.set_cksum();
                out.append(&header, io::empty()).unwrap();
            }
            out.into_inner().unwrap()
        };
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let link = outside.to_str().unwrap();
        let streams = [
            hostile(&[("t/../../outside/x", EntryType::Regular, "")]),
            hostile(&[("t", EntryType::Symlink, link), ("t/x", EntryType::Regular, "")]),
            hostile(&[("t", EntryType::Symlink, link), ("t/d", EntryType::Directory, "")]),
            hostile(&[("t/../../outside/d", EntryType::Directory, "")]),
            hostile(&[("t", EntryType::Directory, ""), ("u", EntryType::Directory, "")]),
            hostile(&[("t", EntryType::Char, "")]),
            hostile(&[]),
            vec![b'x'; 700],
        ];
        for (number, stream) in streams.iter().enumerate() {
            let into = dir.path().join(format!("into-{number}"));
            fs::create_dir(&into).unwrap();
            assert!(unpack(&**stream, &into, 0).is_err(), "{number}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{number}");
        }
    }

    #[test]
    fn a_stream_that_breaks_off_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::write(&source, vec![1; 100_000]).unwrap();
        fs::write(&target, b"old").unwrap();
        let stream = packed(&source);
        assert!(unpack(&stream[..50_000], &target, 0).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(unpack(&*stream, &dir.path().join("no/such/folder"), 0).is_err());
        // A tree that cannot be read to its end is no archive of what came before.
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a"), b"a").unwrap();
        std::os::unix::net::UnixListener::bind(tree.join("left-out")).unwrap();
        assert!(pack(&tree, io::sink()).is_ok());
        assert!(std::process::Command::new("mkfifo").arg(tree.join("b")).status().unwrap().success());
        let mut stream = Vec::new();
        assert!(pack(&tree, &mut stream).unwrap_err().to_string().contains("tree/b"));
        assert!(unpack(&*stream, &dir.path().join("copy"), 0).is_err());
        assert!(!dir.path().join("copy").exists());
    }
}
