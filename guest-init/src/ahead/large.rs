//! Large objects ahead of need: which ranges of them are asked for early, and what becomes of those.
//!
//! Their bytes are fetched and verified by [`crate::content`], and kept in [`crate::ahead::segments`].

use std::ops::Range;
use std::sync::Arc;

use lazyroot_proto::reads::Extent;
use lazyroot_proto::verified::{Unverified, Verified};
use lazyroot_proto::verity;

use crate::ahead::block_set::BlockSet;
use crate::ahead::budget::Budget;
use crate::ahead::runs::{LONGEST_READ, RunPlan, Runs};
use crate::ahead::segments::{Owner, Segments};
use crate::content::Content;
use crate::content::object::{LargeObject, Object, ObjectPart, cut};
use crate::link::recorder::Stopwatch;
use crate::link::{LinkError, ObjectRange, Ticket};

/// Ranges of large objects that were asked for, and the tickets to fetch them with.
pub type RangeTickets = Vec<(ObjectRange, Ticket)>;

/// See the module.
pub struct LargeAhead {
    content: Arc<Content>,
    /// Memory that the boot profile's segments take.
    budget: Arc<Budget>,
    runs: Runs,
    segments: Segments,
    /// What the kernel has asked for, until the boot is over.
    kernel_read: BlockSet,
    /// What the kernel was told to read ahead of programs, until the boot is over.
    kernel_readahead: BlockSet,
}

impl LargeAhead {
    /// Nothing is asked for yet.
    pub fn new(content: Arc<Content>, budget: Arc<Budget>) -> Self {
        Self {
            content,
            budget,
            runs: Runs::new(LONGEST_READ.into()),
            segments: Segments::default(),
            kernel_read: BlockSet::default(),
            kernel_readahead: BlockSet::default(),
        }
    }

    /// Makes place for `extent` of a large object. Returns what of it is to be asked for: what has not been asked for before.
    pub fn insert_absent(&self, extent: Extent, owner: Owner) -> Vec<ObjectRange> {
        // What the kernel asked for while the boot lasts, it has. A run is of use where it reads again, too, but not where no
        // program has read yet.
        let leave_out = |block| match owner {
            Owner::Run => self.kernel_readahead.contains(extent.position, block),
            _ => self.kernel_read.contains(extent.position, block),
        };
        let absent = self.segments.insert_absent(extent, owner, leave_out);
        absent.into_iter().filter_map(|extent| ObjectRange::new(self.content.index(), extent)).collect()
    }

    /// Keeps a range that the boot profile brought. Returns how many bytes; `None` if it could not be had, or does not verify.
    pub fn keep_profile(&self, range: &ObjectRange, data: Result<Unverified, LinkError>) -> Option<usize> {
        let verified = self.verify(range, data);
        let bytes = verified.as_ref().map(|data| data.len());
        self.budget.charge(bytes.unwrap_or(0));
        self.segments.fill(range.extent, verified);
        bytes
    }

    /// The kernel is about to read a range ahead of programs. `false` if they were faster.
    pub fn give_to_kernel(&self, range: &ObjectRange) -> bool {
        // First: else a run may ask for it in the moment in which it is in neither place.
        self.kernel_readahead.insert(range.extent);
        let read = self.segments.give_to_kernel(range.extent);
        read.into_iter().for_each(|bytes| self.content.recorder().watch_profile(bytes));
        read.is_some()
    }

    /// Whether it is the kernel that reads byte `offset` of an object, ahead of programs.
    pub fn is_kernel_readahead(&self, object: &LargeObject, offset: u64) -> bool {
        let block = u32::try_from(offset / verity::BLOCK as u64);
        block.is_ok_and(|block| self.segments.is_kernels(object.position, block))
    }

    fn verify(&self, range: &ObjectRange, data: Result<Unverified, LinkError>) -> Option<Verified> {
        let object = Object::at(self.content.index(), range.extent.position)?.large()?;
        self.content.verify_range(&object, range.offset, data.ok()?).ok()
    }

    /// A scan is about to come to the object at `position`: the beginning of a large one is asked for, and is for
    /// [`LargeAhead::receive`].
    pub fn begin_run(&self, position: u32) -> RangeTickets {
        let large = Object::at(self.content.index(), position).and_then(Object::large);
        large.map_or_else(Vec::new, |object| self.carry_out(self.runs.begin(position, object.size), &object))
    }

    /// The kernel reads these bytes of an object: if a scan reads it from front to back, what follows is asked for, and is for
    /// [`LargeAhead::receive`].
    pub fn follow_run(&self, object: &LargeObject, bytes: Range<u64>) -> RangeTickets {
        self.carry_out(self.runs.read(object.position, bytes, object.size), object)
    }

    fn carry_out(&self, plan: RunPlan, object: &LargeObject) -> RangeTickets {
        if let Some(position) = plan.forget {
            self.segments.drop_run(position);
            self.content.trees().forget(position);
        }
        for range in &plan.request {
            self.content.trees().request(object, range.clone());
        }
        let extents = plan
            .request
            .iter()
            .filter_map(|range| Extent::around(object.position, range.start, range.end - range.start));
        let ranges: Vec<_> = extents.flat_map(|extent| self.insert_absent(extent, Owner::Run)).collect();
        let tickets = self.content.link().request_ranges(&ranges);
        ranges.into_iter().zip(tickets).collect()
    }

    /// Waits for ranges that were asked for on behalf of a run, and keeps them for the reads that follow.
    pub fn receive(&self, tickets: RangeTickets) {
        for (range, ticket) in tickets {
            let data = self.content.link().redeem(ticket);
            self.segments.fill(range.extent, self.verify(&range, data));
        }
    }

    /// A part of an object that a program has waited for since `stopwatch` started, if all of it is here or on its way.
    pub fn read(&self, object: &LargeObject, part: &ObjectPart, stopwatch: Stopwatch) -> Option<Verified> {
        let blocks = object.blocks_around(&part.bytes);
        let extent = Extent::around(object.position, blocks.start, blocks.end - blocks.start)?;
        self.kernel_read.insert(extent);
        let read = self.segments.read(extent, (blocks.end - blocks.start) as usize)?;
        self.budget.release(read.freed);
        self.content.recorder().count(|counters| {
            counters.profile_used_bytes += read.profile_bytes;
            counters.neighbour_bytes += read.run_bytes;
        });
        self.content.record_read(stopwatch, part.extent(), part.len(), read.origin, true);
        let start = (part.bytes.start - blocks.start) as usize;
        Some(cut(read.bytes, start..start + part.len() as usize))
    }

    /// Drops what the boot profile brought, and forgets what the kernel has. Returns how much memory that was, in bytes.
    pub fn clear(&self) -> usize {
        self.kernel_read.close();
        self.kernel_readahead.close();
        self.segments.drop_profile()
    }
}
