//! Where a kernel's files are looked for: a folder, an image in the store, an archive.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::store::{Image, Store};

/// Files among which a kernel is looked for, by paths relative to a root.
pub(super) trait KernelFiles {
    /// Names in a folder; empty if there is no such folder.
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>>;
    /// A file's content.
    fn read(&self, path: &str) -> Result<Vec<u8>>;
    /// Whether there is such a file.
    fn has(&self, path: &str) -> bool;
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File,
}

/// A folder on this machine.
pub(super) struct DirFiles<'a>(pub &'a Path);

impl KernelFiles for DirFiles<'_> {
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>> {
        let Ok(entries) = fs::read_dir(self.0.join(dir)) else { return Ok(Vec::new()) };
        entries
            .map(|entry| {
                let entry = entry?;
                let kind = if entry.file_type()?.is_dir() { Kind::Folder } else { Kind::File };
                Ok((entry.file_name().to_string_lossy().into_owned(), kind))
            })
            .collect()
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.0.join(path);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn has(&self, path: &str) -> bool {
        self.0.join(path).is_file()
    }
}

/// An image in the store.
pub(super) struct ImageFiles<'a> {
    store: &'a Store,
    image: &'a Image,
    tree: crate::store::Tree,
}

impl<'a> ImageFiles<'a> {
    pub(super) fn open(store: &'a Store, image: &'a Image) -> Result<Self> {
        Ok(Self { store, image, tree: image.tree()? })
    }
}

impl KernelFiles for ImageFiles<'_> {
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>> {
        let entries = self.tree.list(format!("/{dir}"))?.unwrap_or_default();
        let kind = |node| if matches!(node, crate::store::Node::Directory) { Kind::Folder } else { Kind::File };
        Ok(entries.into_iter().map(|(name, node)| (name.to_string_lossy().into_owned(), kind(node))).collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.image.read_file(self.store.source().as_ref(), format!("/{path}"))
    }

    fn has(&self, path: &str) -> bool {
        self.tree.exists(format!("/{path}"))
    }
}

/// The files of an archive, in memory.
pub(super) struct TarFiles(BTreeMap<String, Vec<u8>>);

impl TarFiles {
    /// Those of a Debian package: its `data.tar`, as deb(5) has it.
    pub(super) fn of_deb(path: &Path) -> Result<Self> {
        let mut archive = ar::Archive::new(File::open(path)?);
        while let Some(member) = archive.next_entry() {
            let member = member.context("it is no Debian package")?;
            let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
            let reader: Box<dyn Read> = match name.trim_end_matches('/') {
                "data.tar.xz" => Box::new(liblzma::read::XzDecoder::new(member)),
                "data.tar.zst" => Box::new(zstd::Decoder::new(member)?),
                "data.tar.gz" => Box::new(flate2::read::GzDecoder::new(member)),
                "data.tar" => Box::new(member),
                _ => continue,
            };
            return Self::read(reader);
        }
        bail!("it has no data.tar: is it a Debian package?")
    }

    pub(super) fn read(reader: impl Read) -> Result<Self> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(reader).entries()? {
            let mut entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(path, content);
        }
        Ok(Self(files))
    }
}

impl KernelFiles for TarFiles {
    fn list(&self, dir: &str) -> Result<Vec<(String, Kind)>> {
        let prefix = format!("{dir}/");
        let mut names = BTreeMap::new();
        for rest in self.0.keys().filter_map(|path| path.strip_prefix(&prefix)) {
            match rest.split_once('/') {
                Some((folder, _)) => names.insert(folder.to_owned(), Kind::Folder),
                None => names.insert(rest.to_owned(), Kind::File),
            };
        }
        Ok(names.into_iter().collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.0.get(path).cloned().with_context(|| format!("there is no {path} in the archive"))
    }

    fn has(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}
