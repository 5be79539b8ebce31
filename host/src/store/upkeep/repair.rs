//! Mending objects that are damaged: fetched again, or imported again.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, anyhow};
use lazyroot_proto::ObjectId;

use super::verify::{Verification, objects_needed};
use crate::durable::rename_unsynced;
use crate::store::image::remote_images::RemoteImages;
use crate::store::objects::check::check_object;
use crate::store::objects::checked_copy;
use crate::store::objects::source::Object;
use crate::store::progress::Progress;
use crate::store::repository::store::Store;
use crate::store::write::composefs;
use crate::store::write::request::{ImportRequest, Rehash};
use crate::store::write::source::Source;

impl Store {
    /// Mends what [`Store::verify`] found: fetches it from upstreams, if there are any, and imports the images that need
    /// the rest again from where they came from. An object is replaced once a sound one is there; where there is none,
    /// the damaged one stays.
    ///
    /// # Errors
    /// If the store cannot be written. That an object could not be mended is no error, and noted.
    pub fn repair(&self, verification: &mut Verification, progress: &Progress) -> Result<()> {
        self.ensure_changeable()?;
        let damaged: HashSet<ObjectId> =
            verification.damaged.iter().filter_map(|damage| damage.object.parse().ok()).collect();
        let _lock = self.lock()?;
        let mut left = damaged.clone();
        let mut not_fetched = Vec::new();
        if let Some(remote) = self.remote_images() {
            for image in self.ids()? {
                fetch_again(self, remote, &image, &mut left, &mut not_fetched);
            }
        }
        for id in self.ids()? {
            let needed = objects_needed(self, &id, &left);
            if needed.is_empty() {
                continue;
            }
            if let Err(error) = repair_image(self, &id, &needed, progress) {
                verification.not_repaired.push(format!("{error:#}"));
            }
            for object in needed {
                if check_object(&self.objects, &object, None).is_ok() {
                    left.remove(&object);
                }
            }
        }
        let still = not_fetched.into_iter().filter(|(id, _)| left.contains(id));
        verification.not_repaired.extend(still.map(|(_, why)| why));
        for damage in &mut verification.damaged {
            damage.repaired = damage.object.parse().is_ok_and(|id: ObjectId| !left.contains(&id));
        }
        Ok(())
    }
}

/// Fetches what an image needs of these objects from upstreams, and takes out what is sound then. Adds why others
/// are not.
fn fetch_again(
    store: &Store,
    remote: &RemoteImages,
    image: &ObjectId,
    left: &mut HashSet<ObjectId>,
    not_fetched: &mut Vec<(ObjectId, String)>,
) {
    let mut fetch = |id: ObjectId, left: &mut HashSet<ObjectId>| match fetch_object(store, remote, image, &id) {
        Ok(()) => drop(left.remove(&id)),
        Err(error) => not_fetched.push((id, format!("{error:#}"))),
    };
    // Without the manifest it may not be known what else is needed.
    if left.contains(image) {
        fetch(*image, left);
    }
    for id in objects_needed(store, image, left).into_iter().filter(|id| id != image) {
        fetch(id, left);
    }
}

/// Fetches an object of an image, or its manifest, and puts it in the place of the one that is here.
fn fetch_object(store: &Store, remote: &RemoteImages, image: &ObjectId, id: &ObjectId) -> Result<()> {
    let builder = &mut tempfile::Builder::new();
    let mut file = builder.permissions(fs::Permissions::from_mode(0o644)).tempfile_in(store.temporary_dir()?)?;
    if id == image {
        let found = remote.find(&image.to_string(), false)?;
        let found = found.with_context(|| format!("no upstream has the image {image}"))?;
        file.write_all(&fs::read(found.manifest)?)?;
    } else {
        let index = store.index(image)?.load()?;
        let size = index.position(id).and_then(|position| index.get(position)).map(|(_, size)| size);
        let object = Object { id: *id, size: size.context("it is in no index")? };
        checked_copy::copy(remote.objects.as_ref(), &object, &mut file)?;
    }
    file.as_file().sync_all()?;
    file.persist(store.path().join("objects").join(id.object_path()))?;
    // A folder may be as damaged as what is in it.
    check_object(&store.objects, id, None).map(drop).map_err(|why| anyhow!("object {id} was written again, and {why}"))
}

fn repair_image(store: &Store, image: &ObjectId, damaged: &[ObjectId], progress: &Progress) -> Result<()> {
    let names = store.names_of(image)?;
    let shown = names.first().cloned().unwrap_or_else(|| image.to_string());
    let source = names.iter().find_map(|name| store.source_of(image, name));
    let source = source.with_context(|| {
        format!("it is not known where image {shown} came from: import it again, which mends it too")
    })?;
    let source: Source = source.parse().with_context(|| format!("the source of image {shown}"))?;
    // An import takes what is there for good, so what is damaged makes way; it comes back if nothing better does.
    let aside = tempfile::Builder::new().prefix("").tempdir_in(store.temporary_dir()?)?;
    let object = |id: &ObjectId| store.path().join("objects").join(id.object_path());
    for id in damaged {
        let _ = rename_unsynced(object(id), aside.path().join(id.to_hex()));
    }
    let imported = composefs::repair(ImportRequest { store, from: &source, rehash: Rehash::Changed, progress }, &names);
    for id in damaged {
        if !object(id).exists() {
            let _ = rename_unsynced(aside.path().join(id.to_hex()), object(id));
        }
    }
    let imported = imported.with_context(|| format!("cannot mend image {shown}"))?;
    if imported != *image {
        return Err(anyhow!("image {shown} cannot be mended: {source} has changed since it was imported"));
    }
    Ok(())
}
