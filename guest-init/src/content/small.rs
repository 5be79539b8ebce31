//! Small objects, which travel whole: one hash over its blocks proves one.
//!
//! What is asked for ahead waits on the link as a ticket until a program reads it. Then it is cached until the kernel has
//! it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use lazyroot_proto::ObjectId;
use lazyroot_proto::reads::Origin;
use lazyroot_proto::verified::Unverified;

use crate::content::cache::{Cache, Fetch};
use crate::content::error::{ReadError, ReadResult};
use crate::content::object::{SMALL, SmallObject};
use crate::link::recorder::{Recorder, Stopwatch};
use crate::link::{Link, LinkError, ObjectRange, Ticket};

/// Memory for objects, in bytes. The kernel's page cache keeps what programs read; this only bridges the time until it
/// has them.
const BUDGET: usize = 4 << 20;

/// Most objects that are hashed side by side: as many as the widest vector registers have lanes. Nor have they more bytes
/// than one alone may have, so that nobody waits longer for those of others to be hashed than for its own.
const GROUP: usize = 16;

/// See the module.
pub struct SmallObjects {
    link: Arc<Link>,
    recorder: Arc<Recorder>,
    /// On their way, and nobody waits for them yet; on whose behalf.
    tickets: Mutex<BTreeMap<u32, (Ticket, Origin)>>,
    verified: Cache,
}

/// What the host has sent for an object.
struct Delivery {
    id: ObjectId,
    data: Result<Unverified, LinkError>,
    /// How long we waited for it, in microseconds.
    waited: u64,
}

impl SmallObjects {
    /// Nothing is here yet.
    pub fn new(link: Arc<Link>, recorder: Arc<Recorder>) -> Self {
        Self { link, recorder, tickets: Mutex::default(), verified: Cache::new(BUDGET) }
    }

    /// The objects that are here, or being verified.
    pub fn verified(&self) -> &Cache {
        &self.verified
    }

    /// Whether the object at `position` is here or on its way.
    pub fn contains(&self, position: u32) -> bool {
        self.verified.contains(position) || self.tickets().contains_key(&position)
    }

    /// Asks for all of these objects on behalf of `origin`.
    pub fn request(&self, objects: &[ObjectRange], origin: Origin) {
        let tickets = self.link.request_ranges(objects).into_iter().map(|ticket| (ticket, origin));
        self.tickets().extend(objects.iter().map(|object| object.extent.position).zip(tickets));
    }

    /// Gives up what is on its way of the objects at these positions.
    pub fn forget(&self, range: Range<u32>) {
        let forgotten = {
            let mut tickets = self.tickets();
            let mut tail = tickets.split_off(&range.start);
            tickets.append(&mut tail.split_off(&range.end));
            tail
        };
        forgotten.into_values().for_each(|(ticket, _)| self.link.forget(ticket));
    }

    /// A program asks for the object at `position` now. Returns on whose behalf it is here or on its way, if it is.
    pub fn claim(&self, position: u32) -> Option<Origin> {
        self.verified.claim(position).or_else(|| self.tickets().get(&position).map(|(_, origin)| *origin))
    }

    /// All of an object, fetched on behalf of `origin` unless somebody has done so.
    pub fn get(&self, object: &SmallObject, origin: Origin) -> ReadResult {
        let fetch = || self.verify(self.receive(object, self.take_ticket(object)));
        self.verified.get_or_fetch(object.position, origin, fetch)
    }

    /// All of the first of these objects, and of those behind it that have arrived by then, fetched on behalf of `origin`
    /// unless somebody has done so.
    pub fn get_group(&self, objects: &[SmallObject], origin: Origin) -> Vec<ReadResult> {
        let Some((first, others)) = objects.split_first() else { return Vec::new() };
        let Some(fetch) = self.verified.begin(first.position, origin) else { return vec![self.get(first, origin)] };
        let (mut fetches, mut deliveries) = (vec![fetch], vec![self.receive(first, self.take_ticket(first))]);
        for (object, fetch, ticket) in self.begin_arrived(first.size, others, origin) {
            fetches.push(fetch);
            deliveries.push(self.receive(object, Some(ticket)));
        }
        fetches.into_iter().zip(self.verify_group(deliveries)).map(|(fetch, verified)| fetch.finish(verified)).collect()
    }

    /// Begins to fetch those of these objects, from the first on, that need not be waited for, as a group with one of `bytes`.
    fn begin_arrived<'a>(
        &'a self,
        mut bytes: u64,
        objects: &'a [SmallObject],
        origin: Origin,
    ) -> Vec<(&'a SmallObject, Fetch<'a, u32>, Ticket)> {
        let fits = |object: &&SmallObject| {
            bytes += object.size;
            bytes <= SMALL
        };
        let objects: Vec<_> = objects.iter().take(GROUP - 1).take_while(fits).collect();
        self.link.dispatch_buffered();
        let mut tickets = self.tickets();
        let requested = objects.iter().map_while(|object| tickets.get(&object.position)).map(|(ticket, _)| ticket);
        let arrived = self.link.count_arrived(requested);
        let begin = |object: &&'a SmallObject| {
            let fetch = self.verified.begin(object.position, origin)?;
            let (ticket, _) = tickets.remove(&object.position)?;
            Some((*object, fetch, ticket))
        };
        objects[..arrived].iter().map_while(begin).collect()
    }

    fn take_ticket(&self, object: &SmallObject) -> Option<Ticket> {
        self.tickets().remove(&object.position).map(|(ticket, _)| ticket)
    }

    fn receive(&self, SmallObject { id, size, .. }: &SmallObject, ticket: Option<Ticket>) -> Delivery {
        let stopwatch = Stopwatch::start();
        let data = match ticket {
            Some(ticket) => self.link.redeem(ticket),
            None if *size == 0 => Ok(Vec::new().into()),
            None => self.link.read(*id, 0, *size as u32),
        };
        Delivery { id: *id, data, waited: stopwatch.elapsed() }
    }

    fn verify(&self, Delivery { id, data, waited }: Delivery) -> ReadResult {
        let data = data.map_err(|error| ReadError::Link { id, error })?;
        let bytes = data.len() as u64;
        let verified = data.verify_object(&id);
        self.recorder.count(|counters| {
            counters.wire.add(waited);
            counters.verified_bytes += bytes;
        });
        verified.map_err(|_| ReadError::Corrupt(id))
    }

    /// Verifies several objects together, which takes less time than one after the other.
    fn verify_group(&self, deliveries: Vec<Delivery>) -> Vec<ReadResult> {
        let (mut ids, mut objects) = (Vec::with_capacity(deliveries.len()), Vec::with_capacity(deliveries.len()));
        let (mut waits, mut bytes) = (Vec::with_capacity(deliveries.len()), 0);
        for Delivery { id, data, waited } in deliveries {
            ids.push(data.as_ref().map(|_| id).map_err(|error| ReadError::Link { id, error: error.clone() }));
            if let Ok(data) = data {
                bytes += data.len() as u64;
                waits.push(waited);
                objects.push((id, data));
            }
        }
        let mut verdicts = Unverified::verify_objects(objects).into_iter();
        self.recorder.count(|counters| {
            waits.into_iter().for_each(|waited| counters.wire.add(waited));
            counters.verified_bytes += bytes;
        });
        let verdict = |id: Result<ObjectId, ReadError>| {
            let id = id?;
            verdicts.next().expect("every object has a verdict").map_err(|_| ReadError::Corrupt(id))
        };
        ids.into_iter().map(verdict).collect()
    }

    fn tickets(&self) -> MutexGuard<'_, BTreeMap<u32, (Ticket, Origin)>> {
        self.tickets.lock().expect("no panic under the lock")
    }
}
