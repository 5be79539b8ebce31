//! What an import left in the store, looked at before it gets a name.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::entries;

use super::object_stamps::{self, ObjectStamp};
use crate::store::objects::check;
use crate::store::objects::source::ObjectError;
use crate::store::progress::Progress;
use crate::store::repository::store::Store;
use crate::store::write::request::Rehash;

/// What an import left in the store.
pub(super) struct ImportState {
    /// Objects that are missing or not what they should be.
    pub(super) damaged: Vec<ObjectId>,
    /// The manifest's stamp and those of its objects, in manifest order, if nothing is damaged.
    pub(super) stamps: Vec<ObjectStamp>,
    /// Whether all is as it was when it was written to disk before.
    pub(super) as_before: bool,
}

/// Looks at all objects of an image that was imported since `begin`. What was written after that was hashed on the
/// way; what was there before is hashed now, unless it was before and did not change since.
pub(super) fn check_import(
    store: &Store,
    image: &ObjectId,
    begin: &ObjectStamp,
    rehash: Rehash,
    progress: &Progress,
) -> Result<ImportState> {
    let manifest_damaged = ImportState { damaged: vec![*image], stamps: vec![], as_before: false };
    match store.objects.check(image) {
        Ok(_) => {}
        Err(ObjectError::NotFound(_) | ObjectError::Corrupt(_)) => return Ok(manifest_damaged),
        Err(error) => return Err(error.into()),
    }
    let index = store.index(image)?.read()?;
    let known = object_stamps::read(store, image).unwrap_or_default();
    let (mut damaged, mut stamps, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
    let objects = std::iter::once((*image, None)).chain(entries(&index)?.map(|(id, size)| (id, Some(size))));
    for (position, (id, size)) in objects.enumerate() {
        let meta = match fs::symlink_metadata(store.path().join("objects").join(id.object_path())) {
            Ok(meta) if size.is_none_or(|size| size == meta.len()) => meta,
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot look at object {id}"));
            }
            _ => {
                damaged.push(id);
                continue;
            }
        };
        let stamp = ObjectStamp::of(&meta);
        let trusted = stamp.is_after(begin) || rehash == Rehash::Changed && known.get(position) == Some(&stamp);
        if !trusted {
            doubtful.push((id, size, stamp));
        }
        stamps.push(stamp);
    }
    if rehash == Rehash::Changed {
        let elsewhere = object_stamps::of_any_image(store, &doubtful.iter().map(|(id, ..)| *id).collect::<Vec<_>>());
        doubtful.retain(|(id, _, stamp)| elsewhere.get(id) != Some(stamp));
    }
    let doubtful: Vec<_> = doubtful.into_iter().map(|(id, size, _)| (id, size)).collect();
    damaged.extend(check::check_objects(&store.objects, &doubtful, progress).0.into_keys());
    Ok(ImportState { as_before: damaged.is_empty() && stamps == known, damaged, stamps })
}
