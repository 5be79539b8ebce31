//! An S3-compatible bucket, or a folder laid out like one.
//!
//! ```text
//! lazyroot.json             {"version": 1}
//! objects/ab/cdef...        an object, as it is
//! leaves/ab/cdef...         the Merkle leaves of an object of more than 256 KiB; written before the object
//! images/<hex>/manifest
//! images/<hex>/index
//! images/<hex>/profile      what boots read, if that was known at the push; JSON
//! images/<hex>/image.json   sizes and configuration; written last, so who finds it finds all of the image
//! names/NAME:TAG            {"image": "sha256:..."}
//! ```
//!
//! One key for each object, so that images share what they have in common and a push sends only what is missing. A
//! request for a small object costs a round trip, so what is wanted together is asked for together.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::{ObjectId, Unverified, verity};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};
use serde::{Deserialize, Serialize};

use super::{RemoteImage, Upstream, runtime};
use crate::store::name::ImageName;
use crate::store::objects::source::{Object, ObjectError};

/// The layout's version.
const VERSION: u32 = 1;

/// Larger objects have their leaves beside them; smaller ones are always read whole. The cache's bound of the same name.
pub(in crate::store) const WHOLE_MAX: u64 = 256 << 10;

/// How long one request may take. A guest gives up after 30 s, and there may be another upstream to ask.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the answers "slow down" and "internal error" are met with another try.
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// Tries for a body that breaks off: what was sent before it did is no answer.
const BODY_TRIES: usize = 5;

/// Connections that are kept open: as many as a server has small objects under way for its guests.
const IDLE_CONNECTIONS: usize = 128;

/// An upstream that is a bucket.
pub(in crate::store) struct Bucket {
    name: String,
    store: Arc<dyn ObjectStore>,
}

/// `lazyroot.json`.
#[derive(Serialize, Deserialize)]
struct Layout {
    version: u32,
}

impl Layout {
    fn check(&self) -> Result<()> {
        ensure!(self.version == VERSION, "it has layout version {}: update lazyroot", self.version);
        Ok(())
    }
}

/// Its file.
const LAYOUT: &str = "lazyroot.json";

/// `image.json`.
#[derive(Serialize, Deserialize)]
pub(in crate::store) struct ImageRecord {
    pub(in crate::store) manifest_size: u64,
    pub(in crate::store) index_size: u64,
    pub(in crate::store) config: Option<serde_json::Value>,
}

/// A file in `names/`.
#[derive(Serialize, Deserialize)]
pub(in crate::store) struct NameRecord {
    pub(in crate::store) image: String,
}

impl Bucket {
    /// The bucket at `url`. Endpoint and credentials come from the environment, by the names that `object_store`
    /// documents. Nothing is connected yet.
    ///
    /// # Errors
    /// If something that is needed is not set.
    pub(in crate::store) fn open(url: &str) -> Result<Self> {
        let store = connect(url).with_context(|| format!("cannot use {url}"))?;
        Ok(Self { name: url.to_owned(), store })
    }

    /// Where its files are.
    pub(in crate::store) fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    fn get(&self, path: String, range: Option<Range<u64>>) -> object_store::Result<Vec<u8>> {
        let store = self.store.clone();
        runtime::wait(async move { get(&*store, &path.into(), range).await })
    }

    /// A JSON file; `None` if it is not there.
    fn json<T: for<'a> Deserialize<'a>>(&self, path: String) -> Result<Option<T>> {
        match self.get(path.clone(), None) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{path} is damaged"))?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(plain(&error)),
        }
    }

    fn read_range(&self, object: &Object, offset: u64, len: usize) -> Result<Vec<u8>, ObjectError> {
        let end = offset + len as u64;
        let range = if (offset, end) == (0, object.size) { None } else { Some(offset..end) };
        let data = self.read_file(&object.id, object_path(&object.id).into(), range)?;
        if data.len() == len { Ok(data) } else { Err(ObjectError::Short { id: object.id, offset, end }) }
    }

    fn read_file(&self, id: &ObjectId, path: String, range: Option<Range<u64>>) -> Result<Vec<u8>, ObjectError> {
        self.get(path, range).map_err(|error| match error {
            object_store::Error::NotFound { .. } => ObjectError::NotFound(*id),
            error => ObjectError::Unavailable { id: *id, why: format!("{}: {:#}", self.name, plain(&error)) },
        })
    }
}

/// Where an object is.
pub(in crate::store) fn object_path(id: &ObjectId) -> Path {
    format!("objects/{}", id.object_path()).into()
}

/// Where an object's leaves are.
pub(in crate::store) fn leaves_path(id: &ObjectId) -> Path {
    format!("leaves/{}", id.object_path()).into()
}

/// Where one of an image's files is.
pub(in crate::store) fn image_path(id: &ObjectId, file: &str) -> Path {
    format!("images/{}/{file}", id.to_hex()).into()
}

/// Where a name's record is.
pub(in crate::store) fn name_path(name: &ImageName) -> Path {
    Path::from_iter(["names".to_owned()].into_iter().chain(name.as_str().split('/').map(str::to_owned)))
}

/// Makes sure that a bucket has this layout, or has none yet and gets it.
pub(in crate::store) async fn claim(store: &dyn ObjectStore) -> Result<()> {
    let path = Path::from(LAYOUT);
    match get(store, &path, None).await {
        Ok(bytes) => serde_json::from_slice::<Layout>(&bytes).context("lazyroot.json there is damaged")?.check(),
        Err(object_store::Error::NotFound { .. }) => {
            let layout = serde_json::to_vec(&Layout { version: VERSION })?;
            store.put(&path, layout.into()).await.map_err(|error| plain(&error))?;
            Ok(())
        }
        Err(error) => Err(plain(&error)),
    }
}

/// A file or a range of it, all of it.
async fn get(store: &dyn ObjectStore, path: &Path, range: Option<Range<u64>>) -> object_store::Result<Vec<u8>> {
    let mut tries = 0;
    loop {
        tries += 1;
        let options = object_store::GetOptions { range: range.clone().map(Into::into), ..Default::default() };
        // Its own retries are for this part only.
        let result = store.get_opts(path, options).await?;
        let expected = result.range.end - result.range.start;
        match result.bytes().await {
            Ok(bytes) if bytes.len() as u64 == expected => return Ok(bytes.into()),
            Ok(_) | Err(_) if tries < BODY_TRIES => tracing::debug!("{path} broke off: asking again"),
            Ok(bytes) => {
                let why = format!("{} bytes of {expected} came, {tries} times", bytes.len());
                return Err(object_store::Error::Generic { store: "bucket", source: why.into() });
            }
            Err(error) => return Err(error),
        }
    }
}

/// The innermost cause, which is what people can act on; `object_store` wraps it in what it tried.
pub(in crate::store) fn plain(error: &object_store::Error) -> anyhow::Error {
    let text = anyhow::Error::msg(error.to_string()).to_string();
    // One line, however the server formatted its document.
    anyhow::anyhow!("{}", text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn connect(url: &str) -> Result<Arc<dyn ObjectStore>> {
    // reqwest was built without a choice of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (scheme, rest) = url.split_once("://").context("it is no URL")?;
    if scheme == "file" {
        let store = LocalFileSystem::new_with_prefix(rest).context("is there such a folder?")?;
        return Ok(Arc::new(store));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    ensure!(!bucket.is_empty(), "it names no bucket");
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            ..BackoffConfig::default()
        },
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    };
    let client = |plain_http: bool| {
        ClientOptions::new()
            .with_timeout(TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_pool_max_idle_per_host(IDLE_CONNECTIONS)
            .with_allow_http(plain_http)
    };
    let env = |name: &str| std::env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case("true") || value == "1");
    let store: Arc<dyn ObjectStore> = match scheme {
        "s3" => {
            let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
            Arc::new(builder.with_client_options(client(env("AWS_ALLOW_HTTP"))).build()?)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry);
            Arc::new(builder.with_client_options(client(false)).build()?)
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry);
            Arc::new(builder.with_client_options(client(env("AZURE_ALLOW_HTTP"))).build()?)
        }
        other => bail!("'{other}' is no kind of bucket: use s3, gs, az or file"),
    };
    Ok(match prefix.trim_matches('/') {
        "" => store,
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    })
}

impl Upstream for Bucket {
    fn name(&self) -> &str {
        &self.name
    }

    fn imports(&self) -> bool {
        false
    }

    fn check(&self) -> Result<()> {
        let layout: Option<Layout> = self.json(LAYOUT.into())?;
        layout.context("nothing of lazyroot's is there yet")?.check()
    }

    fn find(&self, reference: &str) -> Result<Option<RemoteImage>> {
        let (id, name) = match reference.parse::<ObjectId>() {
            Ok(id) => (id, None),
            Err(_) => {
                let Ok(name) = reference.parse::<ImageName>() else { return Ok(None) };
                let Some(record) = self.json::<NameRecord>(name_path(&name).into())? else { return Ok(None) };
                let id = record.image.parse().with_context(|| format!("the record of {name} is damaged"))?;
                (id, Some(name.to_string()))
            }
        };
        let Some(record) = self.json::<ImageRecord>(image_path(&id, "image.json").into())? else { return Ok(None) };
        let config = record.config.map(|config| config.to_string().into_bytes());
        Ok(Some(RemoteImage { id, manifest_size: record.manifest_size, name, config }))
    }

    fn manifest(&self, image: &RemoteImage) -> Result<Unverified> {
        self.get(image_path(&image.id, "manifest").into(), None).map(Into::into).map_err(|error| plain(&error))
    }

    fn read(&self, object: &Object, offset: u64, len: usize) -> Result<Unverified, ObjectError> {
        self.read_range(object, offset, len).map(Into::into)
    }

    fn leaves(&self, object: &Object) -> Result<Unverified, ObjectError> {
        if object.size > WHOLE_MAX {
            return self.read_file(&object.id, leaves_path(&object.id).into(), None).map(Into::into);
        }
        let data = self.read_range(object, 0, object.size as usize)?;
        Ok(verity::leaves(object.id.algorithm(), &data).into())
    }

    fn profile(&self, image: &RemoteImage) -> Option<Vec<u8>> {
        self.get(image_path(&image.id, "profile").into(), None).ok()
    }
}
