//! Sending an image to a bucket: what is not there yet, many objects at a time.
//!
//! A push that was interrupted is run again: what has arrived stays and is not sent twice. The image's own record is
//! written last and its name after that, so a name in the bucket always leads to a whole image.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use lazyroot_proto::{Unverified, Verified};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::task::JoinSet;

use crate::store::image::handle::Image;
use crate::store::name::ImageName;
use crate::store::objects::source::{Object, ObjectSource};
use crate::store::objects::upstream::bucket::{
    self, Bucket, ImageRecord, NameRecord, image_path, leaves_path, name_path, object_path, plain,
};
use crate::store::objects::upstream::{Address, runtime};
use crate::store::progress::Progress;
use crate::store::repository::store::Store;

/// Objects under way at a time: at 20 ms a request that is 1,600 objects a second.
const PARALLEL: usize = 32;

/// Larger objects are sent in parts of this many bytes, S3's least being 5 MiB.
const PART: usize = 8 << 20;

/// Parts of one object under way at a time.
const PARTS: usize = 4;

/// Uploads in parts that may break off before the push does.
const UPLOAD_TRIES: usize = 5;

/// What is said of an object that does not match its digest.
const DAMAGED: &str = "it is damaged here: 'lazyroot store verify' names the files that hold it";

/// What a push did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pushed {
    /// Objects sent.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were there already.
    pub present: u64,
    /// The bytes of those.
    pub present_bytes: u64,
}

impl Store {
    /// Sends an image to a bucket, under the name it was found by; what is there already is not sent.
    ///
    /// # Errors
    /// If `to` is no bucket or cannot be written, or an object cannot be read.
    pub fn push(&self, to: &Address, image: &Image, progress: &Progress) -> Result<Pushed> {
        let name = image.name.as_deref().and_then(|name| name.parse().ok());
        let profile = self.profile(&image.id).read().and_then(|profile| serde_json::to_vec(&profile).ok());
        send(
            to,
            image,
            name.as_ref(),
            profile,
            self.source(),
            progress.bytes(
                format!("pushing {}", image.name.as_deref().unwrap_or("the image")),
                Some(image.index.total_bytes()),
            ),
        )
    }
}

/// Sends `image`, whose objects `source` has, and names it there as it is named here.
///
/// # Errors
/// If the destination is no bucket or cannot be written, or an object cannot be read or is damaged.
fn send(
    to: &Address,
    image: &Image,
    name: Option<&ImageName>,
    profile: Option<Vec<u8>>,
    source: Arc<dyn ObjectSource>,
    progress: ProgressBar,
) -> Result<Pushed> {
    let Address::Bucket(url) = to else { bail!("cannot push to {to}: use s3://BUCKET[/PREFIX] or file:///PATH") };
    if let Some(folder) = url.strip_prefix("file://") {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {folder}"))?;
    }
    let store = Bucket::open(url)?.store();
    let (image, name) = (image.clone(), name.cloned());
    let pushed = runtime::wait(async move {
        bucket::claim(&*store).await?;
        let pushed = push_objects(&store, &image, source, &progress).await?;
        push_image(&*store, &image, name.as_ref(), profile).await?;
        progress.finish_and_clear();
        anyhow::Ok(pushed)
    });
    pushed.with_context(|| format!("cannot push to {to}"))
}

async fn push_objects(
    store: &Arc<dyn ObjectStore>,
    image: &Image,
    source: Arc<dyn ObjectSource>,
    progress: &ProgressBar,
) -> Result<Pushed> {
    let mut pushed = Pushed::default();
    let mut under_way = JoinSet::new();
    let index = image.index.load()?;
    let mut left = index.entries().iter();
    loop {
        while under_way.len() < PARALLEL
            && let Some(&(id, size)) = left.next()
        {
            let (store, source) = (store.clone(), source.clone());
            under_way.spawn(async move {
                let object = Object { id, size };
                (object, push_object(&store, source, object).await)
            });
        }
        let Some(done) = under_way.join_next().await else { return Ok(pushed) };
        let (object, sent) = done?;
        progress.inc(object.size);
        if sent.with_context(|| format!("object {}", object.id))? {
            pushed.objects += 1;
            pushed.bytes += object.size;
        } else {
            pushed.present += 1;
            pushed.present_bytes += object.size;
        }
    }
}

/// Sends one object unless it is there; whether it was sent.
async fn push_object(store: &Arc<dyn ObjectStore>, source: Arc<dyn ObjectSource>, object: Object) -> Result<bool> {
    let path = object_path(&object.id);
    match store.head(&path).await {
        Ok(meta) if meta.size == object.size => return Ok(false),
        Ok(_) | Err(object_store::Error::NotFound { .. }) => (),
        Err(error) => return Err(plain(&error)),
    }
    if object.size <= bucket::WHOLE_MAX {
        let data = read(&source, object, 0, object.size as usize).await?;
        let data = data.verify_object(&object.id).map_err(|_| anyhow!(DAMAGED))?;
        store.put(&path, data.into_bytes().into()).await.map_err(|error| plain(&error))?;
        return Ok(true);
    }
    let of = source.clone();
    let leaves = tokio::task::spawn_blocking(move || of.leaves(&object)).await??;
    store.put(&leaves_path(&object.id), leaves.clone().into_bytes().into()).await.map_err(|error| plain(&error))?;
    if object.size <= PART as u64 {
        let data = read_part(&source, object, &leaves, 0).await?;
        store.put(&path, data.into_bytes().into()).await.map_err(|error| plain(&error))?;
        return Ok(true);
    }
    let mut tries = 0;
    loop {
        tries += 1;
        match send_parts(&**store, &path, &source, object, &leaves).await? {
            Ok(()) => return Ok(true),
            // The requests that begin and complete an upload cannot be made twice, so object_store does not.
            Err(error) if tries < UPLOAD_TRIES && may_pass(&error) => tracing::debug!("{path}: once more: {error}"),
            Err(error) => return Err(plain(&error)),
        }
    }
}

/// Whether a fault of the store's may be gone the next time.
fn may_pass(error: &object_store::Error) -> bool {
    use object_store::Error;
    !matches!(error, Error::NotFound { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
}

/// Sends an object in parts. The outer error is the source's, the inner one the store's.
async fn send_parts(
    store: &dyn ObjectStore,
    path: &Path,
    source: &Arc<dyn ObjectSource>,
    object: Object,
    leaves: &Verified,
) -> Result<object_store::Result<()>> {
    let mut upload = match store.put_multipart(path).await {
        Ok(upload) => upload,
        Err(error) => return Ok(Err(error)),
    };
    let sent = async {
        let (mut offset, mut under_way) = (0, JoinSet::new());
        while offset < object.size {
            let part = read_part(source, object, leaves, offset).await?;
            offset += part.len() as u64;
            under_way.spawn(upload.put_part(part.into_bytes().into()));
            if under_way.len() == PARTS
                && let Some(Err(error)) = under_way.join_next().await.transpose()?
            {
                return anyhow::Ok(Err(error));
            }
        }
        while let Some(sent) = under_way.join_next().await {
            if let Err(error) = sent? {
                return Ok(Err(error));
            }
        }
        Ok(upload.complete().await.map(|_| ()))
    };
    let sent = sent.await;
    if !matches!(sent, Ok(Ok(()))) {
        // Parts of no object cost money until somebody removes them.
        let _ = upload.abort().await;
    }
    sent
}

/// A part of a large object.
async fn read_part(source: &Arc<dyn ObjectSource>, object: Object, leaves: &Verified, offset: u64) -> Result<Verified> {
    let len = (object.size - offset).min(PART as u64) as usize;
    let data = read(source, object, offset, len).await?;
    data.verify_range(object.id.algorithm(), offset, leaves).map_err(|_| anyhow!(DAMAGED))
}

async fn read(source: &Arc<dyn ObjectSource>, object: Object, offset: u64, len: usize) -> Result<Unverified> {
    let source = source.clone();
    let read = move || {
        let mut data = vec![0; len];
        source.read(&object, offset, &mut data).map(|()| data.into())
    };
    Ok(tokio::task::spawn_blocking(read).await??)
}

/// Sends the image's metadata, then its record, then its name.
async fn push_image(
    store: &dyn ObjectStore,
    image: &Image,
    name: Option<&ImageName>,
    profile: Option<Vec<u8>>,
) -> Result<()> {
    let put = async |path: Path, bytes: Vec<u8>| store.put(&path, bytes.into()).await.map_err(|error| plain(&error));
    let manifest = tokio::fs::read(&image.manifest).await.context("cannot read the manifest")?;
    let manifest = Unverified::from(manifest).verify_object(&image.id);
    let manifest = manifest.map_err(|_| anyhow!("the manifest of {} is damaged", image.id))?;
    let index = image.index.read()?;
    let config = image.config.as_ref().map(|config| serde_json::from_slice(&config.to_oci())).transpose()?;
    let record = ImageRecord { manifest_size: manifest.len() as u64, index_size: index.len() as u64, config };
    put(image_path(&image.id, "manifest"), manifest.into_bytes().into()).await?;
    put(image_path(&image.id, "index"), index).await?;
    if let Some(profile) = profile {
        put(image_path(&image.id, "profile"), profile).await?;
    }
    put(image_path(&image.id, "image.json"), serde_json::to_vec(&record)?).await?;
    if let Some(name) = name {
        let record = NameRecord { image: image.id.to_string() };
        put(name_path(name), serde_json::to_vec(&record)?).await?;
    }
    Ok(())
}
