//! Names of images: links in `images/refs`, and beside each a record of what the name adds to its image.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lazyroot_proto::ObjectId;
use serde::{Deserialize, Serialize};

use super::store::Store;
use crate::store::name::ImageName;

/// A digest may be cut to this many hex digits: 48 bits, as podman and git print them.
const SHORTEST_PREFIX: usize = 12;

/// What a name adds to its image: two images may differ in nothing but their configuration, and then share
/// the manifest.
#[derive(Serialize, Deserialize)]
struct NameRecord {
    /// The image that the record belongs to; another tool may have moved the name.
    image: String,
    /// The OCI configuration.
    config: Option<serde_json::Value>,
    /// Where the image was imported from, for a repair.
    #[serde(default)]
    source: Option<String>,
}

impl Store {
    /// The names of an image, sorted.
    ///
    /// # Errors
    /// If the repository cannot be read.
    pub fn names_of(&self, id: &ObjectId) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter(|(_, named)| named == id).map(|(name, _)| name).collect())
    }

    /// Every name and its image, sorted by name.
    pub(in crate::store) fn names(&self) -> Result<Vec<(String, ObjectId)>> {
        let mut names = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(prefix) = todo.pop() {
            let dir = self.name_path(&prefix);
            let entries = match fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
            };
            for entry in entries {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                if entry.file_type()?.is_dir() {
                    todo.push(name);
                } else if let Ok(target) = fs::read_link(entry.path())
                    && let Some(id) = self.link_target(&target)
                {
                    names.push((name, id));
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// The image's id by name or digest, as [`Store::resolve`] finds it. Nothing of the image is read.
    ///
    /// # Errors
    /// If there is no such image.
    pub fn find_id(&self, text: &str) -> Result<ObjectId> {
        if let Some((_, id)) = self.find_name(text)? {
            return Ok(id);
        }
        self.find_digest(text)?.ok_or_else(|| self.unknown(text))
    }

    /// The image that a name stands for, with the name as it is stored. Names that other tools gave need no tag.
    pub(in crate::store) fn find_name(&self, text: &str) -> Result<Option<(String, ObjectId)>> {
        let Ok(name) = text.parse::<ImageName>() else { return Ok(None) };
        for name in [name.as_str(), text] {
            match fs::read_link(self.name_path(name)) {
                Ok(target) => {
                    let id = self.link_target(&target);
                    let id = id.with_context(|| format!("the name {name} leads to no image: import it again"))?;
                    return Ok(Some((name.to_owned(), id)));
                }
                // InvalidInput: a folder, so a part of longer names.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory
                    ) => {}
                Err(error) => return Err(error).with_context(|| format!("cannot look up the name {name}")),
            }
        }
        Ok(None)
    }

    pub(in crate::store) fn find_digest(&self, text: &str) -> Result<Option<ObjectId>> {
        let digits = text.strip_prefix(self.algorithm().name()).and_then(|rest| rest.strip_prefix(':')).unwrap_or(text);
        let is_hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || digits.len() < SHORTEST_PREFIX {
            return Ok(None);
        }
        let mut found = self.ids()?.into_iter().filter(|id| id.to_hex().starts_with(digits));
        let first = found.next();
        ensure!(found.next().is_none(), "several images start with {digits}: give more digits");
        Ok(first)
    }

    /// The ids of all images.
    pub(in crate::store) fn ids(&self) -> Result<Vec<ObjectId>> {
        let dir = self.path().join("images");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            if let Some(id) = name.to_str().and_then(|name| self.parse_hex(name)) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// The OCI configuration that came with the image under this name, or with its last import.
    pub fn config_document(&self, id: &ObjectId, name: Option<&str>) -> Option<Vec<u8>> {
        if let Some(name) = name
            && let Some(record) = self.name_record(id, name)
        {
            return record.config.map(|config| config.to_string().into_bytes());
        }
        self.files.read(&format!("config/{}", id.to_hex())).ok()
    }

    /// Where the image with this name was imported from, if that is known.
    pub(in crate::store) fn source_of(&self, id: &ObjectId, name: &str) -> Option<String> {
        self.name_record(id, name)?.source
    }

    fn name_record(&self, id: &ObjectId, name: &str) -> Option<NameRecord> {
        let record = self.files.read(&format!("refs/{name}")).ok()?;
        serde_json::from_slice(&record).ok().filter(|record: &NameRecord| record.image == id.to_hex())
    }

    pub(in crate::store) fn set_name(
        &self,
        name: &ImageName,
        id: &ObjectId,
        config: Option<&[u8]>,
        source: Option<String>,
    ) -> Result<()> {
        let _lock = self.lock()?;
        let config = config.map(serde_json::from_slice).transpose().context("the image's configuration is no JSON")?;
        let record = NameRecord { image: id.to_hex(), config, source };
        let path = self.name_path(name.as_str());
        let written = (|| {
            self.files.write_durably(&format!("refs/{name}"), &serde_json::to_vec(&record)?)?;
            fs::create_dir_all(path.parent().expect("a name is below images/refs"))?;
            let up = "../".repeat(name.as_str().split('/').count());
            self.files.replace_symlink(&format!("{up}{}", id.to_hex()), &path)?;
            anyhow::Ok(())
        })();
        written.with_context(|| format!("cannot name the image {name} in {}", self.path().display()))
    }

    pub(in crate::store) fn unknown(&self, text: &str) -> anyhow::Error {
        let names: Vec<String> = self.names().unwrap_or_default().into_iter().map(|(name, _)| name).collect();
        let there = match names.len() {
            0 => "there are no images yet".to_owned(),
            1..=10 => format!("there are: {}", names.join(", ")),
            more => format!("there are {more}, see 'lazyroot image ls'"),
        };
        let upstreams = self.remote_images().map(|remote| format!(" and not at {} either", remote.upstream_names()));
        let upstreams = upstreams.unwrap_or_default();
        anyhow::anyhow!(
            "no image '{text}' in {}{upstreams}; {there}. 'lazyroot image import SOURCE --name {text}' brings one in, from \
             containers-storage:NAME, docker://REF, oci:PATH or dir:PATH",
            self.path().display()
        )
    }

    /// The image that a symbolic link in `images/refs` points to.
    fn link_target(&self, target: &Path) -> Option<ObjectId> {
        self.parse_hex(target.file_name()?.to_str()?)
    }

    fn parse_hex(&self, hex: &str) -> Option<ObjectId> {
        hex.parse().ok().filter(|id: &ObjectId| id.algorithm() == self.algorithm() && id.to_hex() == hex)
    }

    pub(in crate::store) fn name_path(&self, name: &str) -> PathBuf {
        self.path().join("images/refs").join(name)
    }
}
