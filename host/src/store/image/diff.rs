//! What is different between two images.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::Result;
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::entries;
use serde::Serialize;

use super::index::ImageIndex;
use super::tree::Tree;
use super::walk::{Kind, TreeEntry};

/// One file that is not the same in two images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path in both.
    pub path: PathBuf,
    /// Its size in the first image, in bytes, if it is there.
    pub before: Option<u64>,
    /// Its size in the second.
    pub after: Option<u64>,
    /// What of it changed, if it is in both.
    pub what: Vec<Aspect>,
}

/// What of a file can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// Whether it is a file, a folder ...
    Type,
    /// Its bytes, where it points to, its device number.
    Content,
    /// Permissions.
    Mode,
    /// User or group.
    Owner,
    /// Extended attributes.
    Attributes,
    /// When it was modified.
    Time,
}

impl Aspect {
    /// In one word.
    pub const fn name(self) -> &'static str {
        match self {
            Aspect::Type => "type",
            Aspect::Content => "content",
            Aspect::Mode => "mode",
            Aspect::Owner => "owner",
            Aspect::Attributes => "attributes",
            Aspect::Time => "time",
        }
    }
}

/// What a host or guest that has all of one image would have to fetch for all of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fetch {
    /// Objects that only the second image has.
    pub new_objects: u64,
    /// Their sizes together.
    pub new_bytes: u64,
    /// Objects that both have.
    pub shared_objects: u64,
    /// Their sizes together.
    pub shared_bytes: u64,
}

/// Hands every difference from one image to another to `see`, in manifest order.
///
/// # Errors
/// If a manifest is damaged, or `see` fails.
pub fn compare_trees(before: &Tree, after: &Tree, mut see: impl FnMut(Change) -> Result<()>) -> Result<()> {
    let (mut old, mut new) = (before.walk("/")?, after.walk("/")?);
    let (mut left, mut right) = (old.next().transpose()?, new.next().transpose()?);
    loop {
        // Walks are in the order of paths, compared name by name, as `Path` compares.
        let order = match (&left, &right) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.path.cmp(&right.path),
        };
        let old_entry = if order.is_le() { std::mem::replace(&mut left, old.next().transpose()?) } else { None };
        let new_entry = if order.is_ge() { std::mem::replace(&mut right, new.next().transpose()?) } else { None };
        let what = match (&old_entry, &new_entry) {
            (Some(one), Some(other)) => changed(before, one, after, other)?,
            _ => vec![],
        };
        let both = old_entry.is_some() && new_entry.is_some();
        if !both || !what.is_empty() {
            let size =
                |entry: &Option<TreeEntry>| entry.as_ref().map(|entry| if entry.is_dir() { 0 } else { entry.size() });
            let sizes = (size(&old_entry), size(&new_entry));
            let path = new_entry.or(old_entry).map(|entry| entry.path).unwrap_or_default();
            see(Change { path, before: sizes.0, after: sizes.1, what })?;
        }
    }
}

/// What somebody who has all of image `have` would have to fetch for all of `want`.
///
/// # Errors
/// If an index can neither be read nor made.
pub fn fetch_between(have: &ImageIndex, want: &ImageIndex) -> Result<Fetch> {
    let have: HashSet<ObjectId> = entries(&have.read()?)?.map(|(id, _)| id).collect();
    let mut fetch = Fetch::default();
    for (id, size) in entries(&want.read()?)? {
        let (objects, bytes) = match have.contains(&id) {
            true => (&mut fetch.shared_objects, &mut fetch.shared_bytes),
            false => (&mut fetch.new_objects, &mut fetch.new_bytes),
        };
        *objects += 1;
        *bytes = bytes.saturating_add(size);
    }
    Ok(fetch)
}
fn changed(before: &Tree, one: &TreeEntry, after: &Tree, other: &TreeEntry) -> Result<Vec<Aspect>> {
    let mut what = Vec::new();
    let mut note = |differs: bool, aspect: Aspect| {
        if differs {
            what.push(aspect);
        }
    };
    if one.kind() != other.kind() {
        note(true, Aspect::Type);
    } else {
        let content = match one.kind() {
            // An object's id stands for its bytes.
            Kind::File => before.node_of(one)? != after.node_of(other)?,
            Kind::Symlink => before.target(one)? != after.target(other)?,
            Kind::BlockDevice | Kind::CharacterDevice => one.device() != other.device(),
            Kind::Directory | Kind::Fifo | Kind::Socket => false,
        };
        note(content, Aspect::Content);
    }
    note(one.mode() != other.mode(), Aspect::Mode);
    note((one.uid(), one.gid()) != (other.uid(), other.gid()), Aspect::Owner);
    note(before.attributes(one)? != after.attributes(other)?, Aspect::Attributes);
    note(one.modified() != other.modified(), Aspect::Time);
    Ok(what)
}
