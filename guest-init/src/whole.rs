//! Small objects, which travel whole: one hash over its blocks proves one.
//!
//! What is asked for ahead waits on the link as a ticket until somebody wants it, and is then here until the kernel has it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use lazyroot_proto::reads::Origin;
use lazyroot_proto::{ObjectId, verity};

use crate::cache::{Cache, Fetched};
use crate::link::{Link, LinkError, Ticket, Wanted};
use crate::objects::ReadError;
use crate::recorder::{Recorder, Stopwatch};

/// Memory for objects, in bytes. The kernel's page cache keeps what programs read; this only bridges the time until it
/// has them.
const BUDGET: usize = 4 << 20;

/// Most objects that are hashed side by side: as many as vector registers have lanes, so that what each object has one of
/// fills one register. The others wait for the last of them, but only where all have come.
const GROUP: usize = 16;

/// See the module.
pub struct Whole {
    link: Arc<Link>,
    recorder: Arc<Recorder>,
    /// On their way, and nobody waits for them yet; on whose behalf.
    tickets: Mutex<BTreeMap<u32, (Ticket, Origin)>>,
    verified: Cache,
}

/// A small object.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    /// Where it is in the index.
    pub position: u32,
    /// Which it is.
    pub id: ObjectId,
    /// In bytes.
    pub size: u64,
}

/// What the host has sent for an object, not verified, and when we began to wait for it.
struct Received {
    id: ObjectId,
    data: Result<Vec<u8>, LinkError>,
    wire: Stopwatch,
}

impl Whole {
    /// Nothing is here yet.
    pub fn new(link: Arc<Link>, recorder: Arc<Recorder>) -> Self {
        Self { link, recorder, tickets: Mutex::default(), verified: Cache::new(BUDGET) }
    }

    /// What is here, or being verified.
    pub fn verified(&self) -> &Cache {
        &self.verified
    }

    /// Whether the object at `position` is here or on its way.
    pub fn is_coming(&self, position: u32) -> bool {
        self.verified.has(position) || self.tickets().contains_key(&position)
    }

    /// Asks for all of these objects on behalf of `origin`.
    pub fn expect(&self, wanted: &[Wanted], origin: Origin) {
        let tickets = self.link.read_ahead(wanted).into_iter().map(|ticket| (ticket, origin));
        self.tickets().extend(wanted.iter().map(|wanted| wanted.extent.position).zip(tickets));
    }

    /// Nobody is going to want what is on its way of this range.
    pub fn give_up(&self, range: Range<u32>) {
        let given_up = {
            let mut tickets = self.tickets();
            let mut tail = tickets.split_off(&range.start);
            tickets.append(&mut tail.split_off(&range.end));
            tail
        };
        given_up.into_values().for_each(|(ticket, _)| self.link.forget(ticket));
    }

    /// A program asks for the object at `position`. On whose behalf it is here or coming, if it is.
    pub fn claim(&self, position: u32) -> Option<Origin> {
        self.verified.claim(position).or_else(|| self.tickets().get(&position).map(|(_, origin)| *origin))
    }

    /// All of an object, on behalf of `origin` unless it is coming.
    pub fn get(&self, object: &Small, origin: Origin) -> Fetched {
        let fetch = || self.verify(vec![self.receive(object)]).pop().expect("one of one");
        self.verified.get_or_fetch(object.position, origin, fetch)
    }

    /// All of the first of these objects, at least one of them, on behalf of `origin` unless they are coming, and of those
    /// behind it that have come by then.
    pub fn get_first(&self, objects: &[Small], origin: Origin) -> Vec<Fetched> {
        let Some((first, others)) = objects.split_first() else { return Vec::new() };
        let Some(fetch) = self.verified.begin(first.position, origin) else { return vec![self.get(first, origin)] };
        let (mut fetches, mut received) = (vec![fetch], vec![self.receive(first)]);
        for object in &others[..self.have_come(others)] {
            let Some(fetch) = self.verified.begin(object.position, origin) else { break };
            fetches.push(fetch);
            received.push(self.receive(object));
        }
        fetches.into_iter().zip(self.verify(received)).map(|(fetch, verified)| fetch.finish(verified)).collect()
    }

    /// How many of these, from the first on, can be had without waiting.
    fn have_come(&self, objects: &[Small]) -> usize {
        let tickets = self.tickets();
        let tickets = objects[..objects.len().min(GROUP - 1)].iter().map_while(|object| tickets.get(&object.position));
        self.link.have_come(tickets.map(|(ticket, _)| ticket))
    }

    fn receive(&self, Small { position, id, size }: &Small) -> Received {
        let ticket = self.tickets().remove(position);
        let wire = Stopwatch::start();
        let data = match ticket {
            Some((ticket, _)) => self.link.redeem(ticket),
            None if *size == 0 => Ok(Vec::new()),
            None => self.link.read(*id, 0, *size as u32),
        };
        Received { id: *id, data, wire }
    }

    fn verify(&self, received: Vec<Received>) -> Vec<Result<Vec<u8>, ReadError>> {
        let come: Vec<&[u8]> = received.iter().filter_map(|received| received.data.as_deref().ok()).collect();
        // An image has one algorithm.
        let algorithm = received.first().map(|received| received.id.algorithm());
        let digests = algorithm.map(|algorithm| verity::digests(algorithm, &come)).unwrap_or_default();
        self.recorder.count(|counters| {
            counters.verified_bytes += come.iter().map(|data| data.len() as u64).sum::<u64>();
            received
                .iter()
                .filter(|received| received.data.is_ok())
                .for_each(|received| counters.wire.add(received.wire.elapsed()));
        });
        let mut digests = digests.into_iter();
        let verdict = |Received { id, data, .. }| {
            let data = data.map_err(|error| ReadError::Link { id, error })?;
            if digests.next() == Some(id) { Ok(data) } else { Err(ReadError::Corrupt(id)) }
        };
        received.into_iter().map(verdict).collect()
    }

    fn tickets(&self) -> MutexGuard<'_, BTreeMap<u32, (Ticket, Origin)>> {
        self.tickets.lock().expect("no panic under the lock")
    }
}
