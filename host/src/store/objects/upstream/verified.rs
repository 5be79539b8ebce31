//! Upstreams in a row, and nothing from them that does not match its digest.
//!
//! What is damaged, or cannot be had, is asked of the next one; after the last, once more of all of them, since a fault
//! on the way may pass. Bad bytes are counted, the upstream that sent them is named, and nobody gets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lazyroot_proto::verity;

use super::{Found, Upstream};
use crate::store::objects::source::{Object, ObjectError};

/// How often the row is gone through for one object.
const ROUNDS: usize = 2;

/// How long an upstream that did not answer is passed over while another one has what is asked for.
const PASSED_OVER: Duration = Duration::from_secs(5);

/// What came from upstreams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Traffic {
    /// Answers: objects, ranges, leaves and manifests.
    pub requests: u64,
    /// Their bytes, as they are, not as they were packed on the way.
    pub bytes: u64,
    /// Answers that did not match their digest.
    pub damaged: u64,
    /// Requests that an upstream failed.
    pub failed: u64,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    damaged: AtomicU64,
    failed: AtomicU64,
}

struct Member {
    upstream: Arc<dyn Upstream>,
    /// When it last failed to answer.
    down: Mutex<Option<Instant>>,
}

/// An image that an upstream has.
pub(in crate::store) struct Discovery<'a> {
    pub(in crate::store) found: Found,
    /// Checked.
    pub(in crate::store) manifest: Vec<u8>,
    /// What boots read, if the manifest is news and the upstream knows.
    pub(in crate::store) profile: Option<Vec<u8>>,
    /// The upstream's name.
    pub(in crate::store) upstream: &'a str,
}

/// Upstreams, asked in this order.
pub struct Upstreams {
    members: Vec<Member>,
    counters: Counters,
}

impl Upstreams {
    /// These upstreams, in the order in which they are asked.
    pub fn new(upstreams: Vec<Arc<dyn Upstream>>) -> Self {
        let members = upstreams.into_iter().map(|upstream| Member { upstream, down: Mutex::new(None) }).collect();
        Self { members, counters: Counters::default() }
    }

    /// What came from them so far.
    pub fn traffic(&self) -> Traffic {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests: count(&self.counters.requests),
            bytes: count(&self.counters.bytes),
            damaged: count(&self.counters.damaged),
            failed: count(&self.counters.failed),
        }
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.upstream.name())
    }

    /// Whether one of them imports images from sources.
    pub fn import(&self) -> bool {
        self.members.iter().any(|member| member.upstream.imports())
    }

    /// The image that `reference` stands for at the first upstream that knows it, its manifest checked. `None` if all of them said that they do not have it. `have` is asked for a manifest that need
    /// not be fetched.
    ///
    /// # Errors
    /// If none has it and one of them could not be asked.
    pub(in crate::store) fn find(
        &self,
        reference: &str,
        is_source: bool,
        have: impl Fn(&Found) -> Option<Vec<u8>>,
    ) -> Result<Option<Discovery<'_>>> {
        let mut first_error = None;
        for member in self.members.iter().filter(|member| !is_source || member.upstream.imports()) {
            let name = member.upstream.name();
            let found = member.upstream.find(reference).and_then(|found| {
                let Some(found) = found else { return Ok(None) };
                let (manifest, profile) = match have(&found) {
                    Some(manifest) => (manifest, None),
                    None => (self.manifest(member, &found)?, member.upstream.profile(&found)),
                };
                Ok(Some(Discovery { found, manifest, profile, upstream: name }))
            });
            match found {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => (),
                Err(error) => {
                    self.counters.failed.fetch_add(1, Ordering::Relaxed);
                    let error = error.context(format!("upstream {name}"));
                    match &first_error {
                        None => first_error = Some(error),
                        Some(_) => tracing::warn!("{error:#}"),
                    }
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    fn manifest(&self, member: &Member, found: &Found) -> Result<Vec<u8>> {
        let manifest = member.upstream.manifest(found).context("cannot fetch the manifest")?;
        self.count(manifest.len());
        if verity::digest(found.id.algorithm(), &manifest) != found.id {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            ensure!(false, "the manifest of image {} does not match its digest", found.id);
        }
        Ok(manifest)
    }

    /// A whole object.
    ///
    /// # Errors
    /// If no upstream gives it undamaged.
    pub(in crate::store) fn whole(&self, object: &Object) -> Result<Vec<u8>, ObjectError> {
        self.first_good(
            object,
            |upstream| {
                let mut data = vec![0; object.size as usize];
                upstream.read(object, 0, &mut data).map(|()| data)
            },
            |data| verity::digest(object.id.algorithm(), data) == object.id,
        )
    }

    /// An object's Merkle leaves.
    ///
    /// # Errors
    /// If no upstream gives them undamaged.
    pub(in crate::store) fn leaves(&self, object: &Object) -> Result<Arc<[u8]>, ObjectError> {
        let algorithm = object.id.algorithm();
        self.first_good(
            object,
            |upstream| upstream.leaves(object),
            |leaves| verity::digest_of_leaves(algorithm, leaves, object.size) == Some(object.id),
        )
    }

    /// `len` bytes at `offset`, both whole blocks (`len` up to the object's end), checked against the object's
    /// `leaves`.
    ///
    /// # Errors
    /// If no upstream gives them undamaged.
    pub(in crate::store) fn range(
        &self,
        object: &Object,
        leaves: &[u8],
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, ObjectError> {
        self.first_good(
            object,
            |upstream| {
                let mut data = vec![0; len];
                upstream.read(object, offset, &mut data).map(|()| data)
            },
            |data| verity::range_matches(object.id.algorithm(), leaves, offset, data),
        )
    }

    /// The first answer that is good.
    fn first_good<T: AsRef<[u8]>>(
        &self,
        object: &Object,
        ask: impl Fn(&dyn Upstream) -> Result<T, ObjectError>,
        is_good: impl Fn(&[u8]) -> bool,
    ) -> Result<T, ObjectError> {
        let mut faults: Vec<String> = Vec::new();
        for round in 0..ROUNDS {
            // In the first round those that are down are left for the second.
            for member in self.members.iter().filter(|member| round > 0 || !member.is_down()) {
                let name = member.upstream.name();
                let fault = match ask(&*member.upstream) {
                    Ok(data) => {
                        self.count(data.as_ref().len());
                        member.set_down(None);
                        if is_good(data.as_ref()) {
                            return Ok(data);
                        }
                        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!("upstream {name} sent object {} damaged: it is not used", object.id);
                        format!("{name} sent it damaged")
                    }
                    Err(ObjectError::NotFound(_)) => format!("{name} does not have it"),
                    Err(error) => {
                        self.counters.failed.fetch_add(1, Ordering::Relaxed);
                        member.set_down(Some(Instant::now()));
                        match error {
                            ObjectError::Unavailable { why, .. } => why,
                            error => format!("{name}: {error}"),
                        }
                    }
                };
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
        Err(ObjectError::Unavailable { id: object.id, why: faults.join("; ") })
    }

    fn count(&self, bytes: usize) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Member {
    fn is_down(&self) -> bool {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.is_some_and(|since| since.elapsed() < PASSED_OVER)
    }

    fn set_down(&self, since: Option<Instant>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}
