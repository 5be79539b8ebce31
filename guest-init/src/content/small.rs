//! Small objects, which travel whole: one hash over its blocks proves one.
//!
//! What is asked for ahead waits on the link as a ticket until somebody wants it, and is then here until the kernel has it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use lazyroot_proto::reads::Origin;
use lazyroot_proto::{ObjectId, verity};

use crate::content::cache::{Cache, Fetch, Fetched};
use crate::link::recorder::{Recorder, Stopwatch};
use crate::link::{Link, LinkError, Ticket, Wanted};
use crate::objects::{ReadError, SMALL};

/// Memory for objects, in bytes. The kernel's page cache keeps what programs read; this only bridges the time until it
/// has them.
const BUDGET: usize = 4 << 20;

/// Most objects that are hashed side by side: as many as the widest vector registers have lanes. Nor have they more bytes
/// than one alone may have, so that nobody waits longer for those of others to be hashed than for its own.
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

/// What the host has sent for an object, not verified.
struct Received {
    id: ObjectId,
    data: Result<Vec<u8>, LinkError>,
    /// How long we waited for it, in microseconds.
    waited: u64,
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

    /// All of an object, fetched on behalf of `origin` unless somebody has done so.
    pub fn get(&self, object: &Small, origin: Origin) -> Fetched {
        let fetch = || self.verify(vec![self.receive(object, self.take_ticket(object))]).pop().expect("one of one");
        self.verified.get_or_fetch(object.position, origin, fetch)
    }

    /// All of the first of these objects, and of those behind it that have come by then, fetched on behalf of `origin` unless
    /// somebody has done so.
    pub fn get_first(&self, objects: &[Small], origin: Origin) -> Vec<Fetched> {
        let Some((first, others)) = objects.split_first() else { return Vec::new() };
        let Some(fetch) = self.verified.begin(first.position, origin) else { return vec![self.get(first, origin)] };
        let (mut fetches, mut received) = (vec![fetch], vec![self.receive(first, self.take_ticket(first))]);
        for (object, fetch, ticket) in self.take_come(first.size, others, origin) {
            fetches.push(fetch);
            received.push(self.receive(object, Some(ticket)));
        }
        fetches.into_iter().zip(self.verify(received)).map(|(fetch, verified)| fetch.finish(verified)).collect()
    }

    /// Those of these objects, from the first on, that can be had without waiting, as a group with one of `bytes`.
    fn take_come<'a>(
        &'a self,
        mut bytes: u64,
        objects: &'a [Small],
        origin: Origin,
    ) -> Vec<(&'a Small, Fetch<'a, u32>, Ticket)> {
        let fits = |object: &&Small| {
            bytes += object.size;
            bytes <= SMALL
        };
        let objects: Vec<_> = objects.iter().take(GROUP - 1).take_while(fits).collect();
        self.link.take_in();
        let mut tickets = self.tickets();
        let expected = objects.iter().map_while(|object| tickets.get(&object.position)).map(|(ticket, _)| ticket);
        let come = self.link.have_come(expected);
        let take = |object: &&'a Small| {
            let fetch = self.verified.begin(object.position, origin)?;
            let (ticket, _) = tickets.remove(&object.position)?;
            Some((*object, fetch, ticket))
        };
        objects[..come].iter().map_while(take).collect()
    }

    fn take_ticket(&self, object: &Small) -> Option<Ticket> {
        self.tickets().remove(&object.position).map(|(ticket, _)| ticket)
    }

    fn receive(&self, Small { id, size, .. }: &Small, ticket: Option<Ticket>) -> Received {
        let stopwatch = Stopwatch::start();
        let data = match ticket {
            Some(ticket) => self.link.redeem(ticket),
            None if *size == 0 => Ok(Vec::new()),
            None => self.link.read(*id, 0, *size as u32),
        };
        Received { id: *id, data, waited: stopwatch.elapsed() }
    }

    fn verify(&self, received: Vec<Received>) -> Vec<Result<Vec<u8>, ReadError>> {
        let come: Vec<&[u8]> = received.iter().filter_map(|received| received.data.as_deref().ok()).collect();
        // An image has one algorithm.
        let algorithm = received.first().map(|received| received.id.algorithm());
        let digests = algorithm.map(|algorithm| verity::digests(algorithm, &come)).unwrap_or_default();
        self.recorder.count(|counters| {
            for received in received.iter().filter(|received| received.data.is_ok()) {
                counters.wire.add(received.waited);
            }
            counters.verified_bytes += come.iter().map(|data| data.len() as u64).sum::<u64>();
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
