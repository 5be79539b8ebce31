//! A tree by folders, all names of one together, as `ls -R` and `tree` show it.
//!
//! A walk meets a folder's last names after all that is below its first ones, so a listing keeps every name until the
//! walk is over; to stay small beside the manifest, a name and a number is all it keeps of a file.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::walk::Walk;

/// The folders of a tree, each before those that are in it, in name order.
pub struct Listing {
    /// The first is where the walk began.
    pub folders: Vec<Folder>,
}

/// A folder and what is in it.
pub struct Folder {
    /// Its path from the image's root.
    pub path: PathBuf,
    /// How many folders below the first it is.
    pub depth: usize,
    /// Sorted by name.
    pub names: Vec<Name>,
}

/// A name in a folder.
pub struct Name {
    /// Of any bytes but `/` and NUL.
    pub name: Box<[u8]>,
    /// Where its own names are in [`Listing::folders`] if it is a folder.
    pub folder: Option<u32>,
    pub(in crate::store) inode: u64,
}

impl Listing {
    pub(in crate::store) fn new(walk: Walk<'_>) -> Result<Self> {
        let mut folders: Vec<Folder> = Vec::new();
        // By depth, the folder that the walk is in.
        let mut open: Vec<usize> = Vec::new();
        for entry in walk {
            let entry = entry?;
            open.truncate(entry.depth);
            let folder = entry.is_dir().then_some(folders.len() as u32);
            if let Some(&parent) = open.last() {
                folders[parent].names.push(Name { name: entry.name().into(), folder, inode: entry.inode() });
            }
            if folder.is_some() {
                open.push(folders.len());
                folders.push(Folder { path: entry.path, depth: entry.depth, names: Vec::new() });
            }
        }
        ensure!(!folders.is_empty(), "this is no folder");
        Ok(Self { folders })
    }
}
