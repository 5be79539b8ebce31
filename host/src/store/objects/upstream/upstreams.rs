//! Upstreams in a row, and nothing from them that does not match its digest: what they send is
//! [`Unverified`], and what is returned here is [`Verified`].
//!
//! What is damaged, or cannot be had, is asked of the next one; after the last, once more of all of them, since a fault
//! on the way may pass. Bad bytes are counted, the upstream that sent them is named, and nobody gets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lazyroot_proto::verified::Mismatch;
use lazyroot_proto::{Unverified, Verified};

use super::{RemoteImage, Upstream};
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
    pub(in crate::store) found: RemoteImage,
    pub(in crate::store) manifest: Verified,
    /// What boots read, if the manifest is new here and the upstream knows: a hint that nobody has checked.
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
        have: impl Fn(&RemoteImage) -> Option<Verified>,
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

    fn manifest(&self, member: &Member, found: &RemoteImage) -> Result<Verified> {
        let manifest = member.upstream.manifest(found).context("cannot fetch the manifest")?;
        self.count(manifest.len());
        manifest.verify_object(&found.id).map_err(|_| {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            anyhow!("the manifest of image {} does not match its digest", found.id)
        })
    }

    /// A whole object.
    ///
    /// # Errors
    /// If no upstream gives it undamaged.
    pub(in crate::store) fn whole(&self, object: &Object) -> Result<Verified, ObjectError> {
        self.first_verified(
            object,
            |upstream| upstream.read(object, 0, object.size as usize),
            |data| data.verify_object(&object.id),
        )
    }

    /// An object's Merkle leaves.
    ///
    /// # Errors
    /// If no upstream gives them undamaged.
    pub(in crate::store) fn leaves(&self, object: &Object) -> Result<Verified, ObjectError> {
        self.first_verified(
            object,
            |upstream| upstream.leaves(object),
            |leaves| leaves.verify_level(&object.id, object.size, 0),
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
        leaves: &Verified,
        offset: u64,
        len: usize,
    ) -> Result<Verified, ObjectError> {
        self.first_verified(
            object,
            |upstream| upstream.read(object, offset, len),
            |data| data.verify_range(object.id.algorithm(), offset, leaves),
        )
    }

    /// The first answer that is verified.
    fn first_verified(
        &self,
        object: &Object,
        ask: impl Fn(&dyn Upstream) -> Result<Unverified, ObjectError>,
        verify: impl Fn(Unverified) -> Result<Verified, Mismatch>,
    ) -> Result<Verified, ObjectError> {
        let mut faults: Vec<String> = Vec::new();
        for round in 0..ROUNDS {
            // In the first round those that are down are left for the second.
            for member in self.members.iter().filter(|member| round > 0 || !member.is_down()) {
                let name = member.upstream.name();
                let fault = match ask(&*member.upstream) {
                    Ok(data) => {
                        self.count(data.len());
                        member.set_down(None);
                        if let Ok(verified) = verify(data) {
                            return Ok(verified);
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
