//! What an image's folders take, and how much of that other images of the store take anyway.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::{ObjectIndex, entries};
use serde::Serialize;

use crate::store::image::tree::Tree;
use crate::store::repository::store::Store;

/// Sums over a part of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Sizes of all regular files, in bytes, each hard-linked one once.
    pub apparent_bytes: u64,
    /// Bytes of objects that no other image of the store has.
    pub unique_bytes: u64,
    /// Bytes of objects that other images have too.
    pub shared_bytes: u64,
    /// Regular files.
    pub files: u64,
}

impl Usage {
    fn add(&mut self, other: &Usage) {
        // Sizes are what a manifest claims.
        self.apparent_bytes = self.apparent_bytes.saturating_add(other.apparent_bytes);
        self.unique_bytes = self.unique_bytes.saturating_add(other.unique_bytes);
        self.shared_bytes = self.shared_bytes.saturating_add(other.shared_bytes);
        self.files += other.files;
    }
}

impl Store {
    /// Whether an image has an object.
    ///
    /// # Errors
    /// If the image's index can neither be read nor made.
    pub fn has_object(&self, image: &ObjectId, object: &ObjectId) -> Result<bool> {
        let index = self.index(image)?.read()?;
        Ok(entries(&index)?.any(|(id, _)| id == *object))
    }

    /// What `path` and the folders in it, down to `depth` levels, take: deeper folders first, as du(1) has it. An
    /// object counts where the walk meets it first.
    ///
    /// # Errors
    /// If the manifest is damaged. Other images that are damaged are left out, with a warning.
    pub fn usage(&self, image: &ObjectId, tree: &Tree, path: &Path, depth: usize) -> Result<Vec<(PathBuf, Usage)>> {
        // One that is elsewhere has none here.
        let index = self.index(image).and_then(|index| index.load()).or_else(|_| tree.objects())?;
        let shared = self.shared_positions(image, &index)?;
        let mut met = vec![false; index.entries().len()];
        let mut files = HashSet::new();
        let mut sums = Vec::new();
        // The folders that the walk is in, with what was counted so far.
        let mut open: Vec<(PathBuf, Usage)> = Vec::new();
        let close = |open: &mut Vec<(PathBuf, Usage)>, to: usize, sums: &mut Vec<(PathBuf, Usage)>| {
            while open.len() > to {
                let level = open.len() - 1;
                let (path, usage) = open.pop().expect("it is longer than that");
                if let Some((_, parent)) = open.last_mut() {
                    parent.add(&usage);
                }
                if level <= depth {
                    sums.push((path, usage));
                }
            }
        };
        for entry in tree.walk(path)? {
            let entry = entry?;
            close(&mut open, entry.depth, &mut sums);
            let mut usage = Usage::default();
            if entry.is_file() && files.insert(entry.inode()) {
                usage.apparent_bytes = entry.size();
                usage.files = 1;
                if let Some(id) = tree.object(&entry)?
                    && let Some(position) = index.position(&id)
                    && !std::mem::replace(&mut met[position as usize], true)
                {
                    match shared[position as usize] {
                        true => usage.shared_bytes = entry.size(),
                        false => usage.unique_bytes = entry.size(),
                    }
                }
            }
            if entry.is_dir() || open.is_empty() {
                open.push((entry.path, usage));
            } else if let Some((_, folder)) = open.last_mut() {
                folder.add(&usage);
            }
        }
        close(&mut open, 0, &mut sums);
        Ok(sums)
    }

    /// For each position of an image's index, whether another image has that object too.
    fn shared_positions(&self, image: &ObjectId, index: &ObjectIndex) -> Result<Vec<bool>> {
        let mut shared = vec![false; index.entries().len()];
        for other in self.ids()?.iter().filter(|other| *other != image) {
            // One at a time, and never parsed: the store may have many and large images. One that is damaged shares
            // nothing that anybody could have.
            let bytes = match self.index(other).and_then(|index| index.read()) {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!("left out image {other}: {error:#}");
                    continue;
                }
            };
            for (id, _) in entries(&bytes)? {
                if let Some(position) = index.position(&id) {
                    shared[position as usize] = true;
                }
            }
        }
        Ok(shared)
    }
}
