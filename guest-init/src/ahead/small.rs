//! Small objects ahead of need: which of them are asked for early, and where they wait for a program.
//!
//! Their bytes are fetched, verified and cached by [`crate::content::small`].

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use lazyroot_proto::reads::{Extent, Origin};
use lazyroot_proto::verified::Verified;

use crate::ahead::budget::Budget;
use crate::content::Content;
use crate::content::object::{Object, SMALL, SmallObject};
use crate::link::ObjectRange;
use crate::link::recorder::Stopwatch;

/// Objects that were opened and may still be read: more than the programs that open files at the same time.
const MAX_OPEN_REQUESTS: usize = 64;

/// See the module.
pub struct SmallAhead {
    content: Arc<Content>,
    /// Memory that the boot profile's objects take.
    budget: Arc<Budget>,
    /// Objects that were asked for when a program opened them, oldest first.
    open_requests: Mutex<VecDeque<u32>>,
    /// Objects that programs find in the memory layer, without a request.
    in_memory_layer: Mutex<HashSet<u32>>,
}

impl SmallAhead {
    /// Nothing is asked for yet.
    pub fn new(content: Arc<Content>, budget: Arc<Budget>) -> Self {
        Self { content, budget, open_requests: Mutex::default(), in_memory_layer: Mutex::default() }
    }

    /// Asks for those of these small objects that are not here or on their way, on behalf of `origin`.
    pub fn request(&self, positions: impl Iterator<Item = u32>, origin: Origin) {
        let (small, index) = (self.content.small(), self.content.index());
        let in_memory_layer = self.in_memory_layer.lock().expect("no panic under the lock");
        let absent = |position: &u32| !in_memory_layer.contains(position) && !small.contains(*position);
        let all = |position| ObjectRange::new(index, Extent::around(position, 0, index.get(position)?.1)?);
        let objects: Vec<_> = positions.filter(absent).filter_map(all).collect();
        small.request(&objects, origin);
    }

    /// Gives up what is on its way of the objects at these positions.
    pub fn forget(&self, positions: std::ops::Range<u32>) {
        self.content.small().forget(positions);
    }

    /// A program opens the object at `position`: if it is small it is asked for now, and here by the time it is read.
    pub fn on_open(&self, position: u32) {
        if !matches!(self.content.index().get(position), Some((_, 1..=SMALL))) || self.is_in_memory_layer(position) {
            return;
        }
        self.request([position].into_iter(), Origin::Host);
        let mut requests = self.open_requests.lock().expect("no panic under the lock");
        requests.push_back(position);
        let oldest = if requests.len() > MAX_OPEN_REQUESTS { requests.pop_front() } else { None };
        drop(requests);
        // Opened and not read: nobody waits for it.
        if let Some(position) = oldest {
            self.forget(position..position + 1);
        }
    }

    fn is_in_memory_layer(&self, position: u32) -> bool {
        self.in_memory_layer.lock().expect("no panic under the lock").contains(&position)
    }

    /// Has `place` put all of each of these small objects somewhere, which were asked for with [`SmallAhead::request`] on
    /// behalf of `origin`, as they arrive, with a moment before each was waited for. Leaves out what the kernel has meanwhile,
    /// and what cannot be had.
    pub fn receive(
        &self,
        positions: impl Iterator<Item = u32>,
        origin: Origin,
        mut place: impl FnMut(u32, &Verified, Stopwatch),
    ) {
        let small = self.content.small();
        let at = |position| Object::at(self.content.index(), position)?.small();
        let objects: Vec<_> = positions.filter_map(at).collect();
        let mut rest = &objects[..];
        while let [first, others @ ..] = rest {
            if !small.contains(first.position) {
                rest = others;
                continue;
            }
            let mut stopwatch = Stopwatch::start();
            let group = small.get_group(rest, origin);
            let (these, others) = rest.split_at(group.len());
            for (SmallObject { position, .. }, fetched) in these.iter().zip(group) {
                if let Some(content) = fetched.ok().filter(|_| small.verified().contains(*position)) {
                    place(*position, &content, stopwatch);
                }
                // The next one arrived together with this one: the only wait for it was while this one was placed.
                stopwatch = Stopwatch::start();
            }
            rest = others;
        }
    }

    /// Keeps what the boot profile brought for `position` until a program asks for it, or until [`SmallAhead::clear`].
    pub fn pin(&self, position: u32, bytes: usize) {
        self.budget.charge(self.content.small().verified().pin(position));
        self.content.recorder().watch_profile(bytes as u64);
    }

    /// The object at `position` is in the memory layer, where programs find it without a request: it need not be brought
    /// again.
    pub fn insert_in_memory_layer(&self, position: u32) {
        self.in_memory_layer.lock().expect("no panic under the lock").insert(position);
    }

    /// As [`SmallAhead::insert_in_memory_layer`], of an object that the boot profile brought.
    pub fn insert_profile_in_memory_layer(&self, position: u32, bytes: usize, stopwatch: Stopwatch) {
        self.budget.charge(bytes);
        self.insert_in_memory_layer(position);
        let bytes = bytes as u64;
        self.content.record_read(stopwatch, Extent::around(position, 0, bytes), bytes, Origin::Preloaded, true);
        // A program that has asked for it meanwhile looks in the layer below, and does not need what is kept here.
        self.content.small().verified().remove(position);
    }

    /// The kernel gets all of this object now, so that nothing needs to be kept here.
    pub fn release(&self, position: u32) {
        self.budget.release(self.content.small().verified().remove(position));
    }

    /// The kernel was given all of this object before a program has asked for it, and will not tell when one does. The best
    /// guess is that the program which reads its neighbours reads it, too.
    pub fn record_placed(&self, position: u32, stopwatch: Stopwatch) {
        let size = self.content.index().get(position).map_or(0, |(_, size)| size);
        let origin = self.content.small().verified().claim(position).unwrap_or(Origin::Neighbour);
        self.release(position);
        self.content.recorder().count(|counters| match origin {
            Origin::Profile => counters.profile_used_bytes += size,
            _ => counters.neighbour_bytes += size,
        });
        self.content.record_read(stopwatch, Extent::around(position, 0, size), size, origin, true);
    }

    /// Forgets what is in the memory layer, and drops what is pinned.
    pub fn clear(&self) -> usize {
        self.in_memory_layer.lock().expect("no panic under the lock").clear();
        self.content.small().verified().remove_pinned()
    }
}
