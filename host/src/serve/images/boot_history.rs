//! What is kept of an image's boots: its boot profile, and a trace of the last one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::Result;
use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::encode_hints;

use crate::serve::record::{Activity, ActivityState};
use crate::store::{Profile, ProfileFile, Store, TraceFile};

/// What is done with an image's boot profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProfileUse {
    /// Guests are sent ahead what it says, and what they read is merged into it.
    #[default]
    Follow,
    /// Nothing is sent ahead, and what the guest reads takes its place.
    Record,
    /// Nothing is sent ahead, and it stays as it is.
    Ignore,
}

/// Where the boots of one image are kept.
#[derive(Clone)]
pub struct BootHistory {
    profile: ProfileFile,
    trace: Option<TraceFile>,
    profile_use: ProfileUse,
    /// Whether a recorded profile has taken the old one's place: a guest that reconnects must not replace its own.
    replaced: Arc<AtomicBool>,
    hints: Arc<Mutex<Option<SharedHints>>>,
}

/// What the last session was sent ahead, which the next ones share.
struct SharedHints {
    /// Of the profile it was made from.
    version: (u64, SystemTime),
    /// As it goes over the wire.
    hints: Arc<[u8]>,
}

impl BootHistory {
    /// That of an image of `store`.
    pub fn new(store: &Store, image: &ObjectId, profile_use: ProfileUse) -> Self {
        Self { trace: Some(store.trace(image)), profile_use, ..Self::of_profile(store.profile(image)) }
    }

    /// That of an image whose traces are not kept.
    pub fn of_profile(profile: ProfileFile) -> Self {
        let (replaced, hints) = (Arc::default(), Arc::default());
        Self { profile, trace: None, profile_use: ProfileUse::Follow, replaced, hints }
    }

    /// What to send a guest ahead, as it goes over the wire. Sessions share it until the profile is another.
    pub(in crate::serve) fn hints(&self, index: &ObjectIndex) -> Arc<[u8]> {
        let version = match self.profile_use {
            ProfileUse::Follow => self.profile.version(),
            ProfileUse::Record | ProfileUse::Ignore => None,
        };
        let Some(version) = version else { return Arc::default() };
        let mut shared = self.hints.lock().expect("no panic under the lock");
        if let Some(shared) = shared.as_ref().filter(|shared| shared.version == version) {
            return shared.hints.clone();
        }
        let hints = self.profile.read().map(|profile| profile.hints(index)).unwrap_or_default();
        let hints: Arc<[u8]> = encode_hints(&hints).into();
        *shared = Some(SharedHints { version, hints: hints.clone() });
        hints
    }

    /// Keeps what a session has read. One that read nothing leaves no record.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(in crate::serve) fn record(&self, activity: &Activity, state: &ActivityState) -> Result<()> {
        if state.reads.is_empty() {
            return Ok(());
        }
        if let Some(trace) = &self.trace {
            trace.write(&activity.trace_of(state))?;
        }
        match self.profile_use {
            ProfileUse::Record if !self.replaced.swap(true, Ordering::AcqRel) => {
                let mut profile = Profile::default();
                profile.merge(&activity.index, &state.reads);
                self.profile.write(&profile)
            }
            ProfileUse::Follow | ProfileUse::Record => self.profile.merge(&activity.index, &state.reads),
            ProfileUse::Ignore => Ok(()),
        }
    }
}
