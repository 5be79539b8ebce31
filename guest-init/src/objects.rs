//! Verified reads of an image's objects: what the FUSE layer asks, answered from the link.
//!
//! Nothing leaves this module that has not been checked against a digest from the verified object index.
//! Small objects are fetched whole, which one hash over their blocks proves ([`crate::content::small`]). Of large ones just the
//! ranges that are asked for come, and the nodes of the Merkle tree that prove them ([`crate::content::merkle`]).

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use lazyroot_proto::frame::{EventKind, MAX_READ};
use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::{Extent, Origin};
use lazyroot_proto::{ObjectId, verity};

use crate::ahead::block_set::Asked;
use crate::ahead::budget::Budget;
use crate::ahead::pieces::Pieces;
use crate::ahead::runs::{self, Runs};
use crate::ahead::sequences::{Neighbours, Step};
use crate::clock::monotonic_now;
use crate::complain::complain;
use crate::content::cache::Fetched;
use crate::content::merkle::{Large, Trees};
use crate::content::small::{Small, Whole};
use crate::link::recorder::{Recorder, Stopwatch};
use crate::link::{Link, LinkError, Ticket, Wanted};
use crate::placement::{self, LONG_WORK};

/// Objects up to this many bytes travel whole: 99 % of the objects of a Linux image, and at vsock's speed
/// (tens of MiB/s emulated, GB/s otherwise) no dearer than the extra round trip for leaves.
pub const SMALL: u64 = 256 << 10;

/// What the kernel reads at a time at most, and so reads ahead, in bytes. Its own default is half of that, its limit
/// 1 MiB; sequential reads are as fast with each, but programs that jump about in large files (python and its libraries)
/// fetch a quarter less than with 1 MiB.
pub const LONGEST_READ: u32 = 256 << 10;

/// Objects that were opened and may still be read: more than the programs that open files at the same time.
const MAX_OPENED: usize = 64;

/// Why a read failed. The text names the object.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The host could not deliver it.
    #[error("object {id}: {error}")]
    Link {
        /// Which object.
        id: ObjectId,
        /// What went wrong.
        error: LinkError,
    },
    /// What arrived is not what the digest names.
    #[error("object {0}: the content does not match its digest")]
    Corrupt(ObjectId),
}

/// Ranges of a large object on their way, ahead of the program that reads it.
pub type Run = Vec<(Wanted, Ticket)>;

/// The objects of one image.
pub struct Objects {
    link: Arc<Link>,
    index: ObjectIndex,
    recorder: Arc<Recorder>,
    neighbours: Neighbours,
    whole: Whole,
    trees: Trees,
    runs: Runs,
    /// Of large objects, what the boot profile brings, and what comes ahead in runs.
    pieces: Pieces,
    /// Of large objects, what the kernel has asked for, until the boot is over.
    asked: Asked,
    /// Of them, what the kernel reads ahead of programs, likewise.
    handed_over: Asked,
    /// Memory that the boot profile's objects and pieces take.
    budget: Budget,
    /// Objects that were asked for when a program opened them, oldest first.
    opened: Mutex<VecDeque<u32>>,
    /// Small objects that programs find by themselves.
    ready: Mutex<HashSet<u32>>,
    /// Objects whose failure was told.
    told: Mutex<HashSet<u32>>,
}

/// Bytes that a read returns: a part of a shared buffer, so that nothing is copied on the way to the kernel.
pub struct Bytes {
    data: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Bytes {
    /// Whether it is all of a buffer: of a small object, then, all of its content.
    pub fn is_whole(&self) -> bool {
        self.start == 0 && self.end == self.data.len()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(data: Vec<u8>) -> Self {
        Self { start: 0, end: data.len(), data: Arc::new(data) }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }
}

impl Objects {
    /// The objects in `index` (already verified), read through `link`. What is read is told through `recorder`; what the
    /// boot profile brings may take `budget` bytes.
    pub fn new(link: Arc<Link>, index: ObjectIndex, recorder: Arc<Recorder>, budget: usize) -> Self {
        Self {
            whole: Whole::new(link.clone(), recorder.clone()),
            link,
            index,
            recorder,
            neighbours: Neighbours::default(),
            trees: Trees::new(),
            runs: Runs::new(LONGEST_READ.into()),
            pieces: Pieces::default(),
            asked: Asked::default(),
            handed_over: Asked::default(),
            budget: Budget::new(budget),
            opened: Mutex::default(),
            ready: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// The image's object index.
    pub fn index(&self) -> &ObjectIndex {
        &self.index
    }

    /// The session with the host.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// What hears of reads.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Memory for what is fetched ahead of need.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes down that the kernel asked for an object, and asks for what follows it if it seems to be read next.
    pub fn miss(&self, position: u32) -> Step {
        let Some((_, 1..=SMALL)) = self.index.get(position) else { return Step::default() };
        let step = self.neighbours.miss(&self.index, position, SMALL);
        for range in step.give_up.iter().cloned() {
            self.whole.give_up(range);
        }
        if let Some(batch) = step.ask.clone() {
            self.expect_small(batch, Origin::Neighbour);
        }
        step
    }

    /// Asks for those of these small objects that are not here or on their way, on behalf of `origin`.
    pub fn expect_small(&self, positions: impl Iterator<Item = u32>, origin: Origin) {
        let ready = self.ready.lock().expect("no panic under the lock");
        let absent = |position: &u32| !ready.contains(position) && !self.whole.is_coming(*position);
        let all = |position| Wanted::new(&self.index, Extent::around(position, 0, self.index.get(position)?.1)?);
        let wanted: Vec<_> = positions.filter(absent).filter_map(all).collect();
        self.whole.expect(&wanted, origin);
    }

    /// A program opens the small object at `position`: it is asked for now, and here by the time it is read.
    pub fn expect_opened(&self, position: u32) {
        if !matches!(self.index.get(position), Some((_, 1..=SMALL))) || self.ready_small(position) {
            return;
        }
        self.expect_small([position].into_iter(), Origin::Host);
        let mut opened = self.opened.lock().expect("no panic under the lock");
        opened.push_back(position);
        let oldest = if opened.len() > MAX_OPENED { opened.pop_front() } else { None };
        drop(opened);
        // Opened and not read: nobody waits for it.
        if let Some(position) = oldest {
            self.whole.give_up(position..position + 1);
        }
    }

    fn ready_small(&self, position: u32) -> bool {
        self.ready.lock().expect("no panic under the lock").contains(&position)
    }

    /// Has `take` have all of each of these small objects, which were asked for with [`Objects::expect_small`] on behalf of
    /// `origin`, as they come, with a moment before it was waited for. Leaves out what the kernel has meanwhile, and what
    /// cannot be had.
    pub fn receive_small(
        &self,
        positions: impl Iterator<Item = u32>,
        origin: Origin,
        mut take: impl FnMut(u32, &[u8], Stopwatch),
    ) {
        let objects: Vec<_> = positions.filter_map(|position| self.small(position)).collect();
        let mut rest = &objects[..];
        while let [first, others @ ..] = rest {
            if !self.whole.is_coming(first.position) {
                rest = others;
                continue;
            }
            let mut stopwatch = Stopwatch::start();
            let fetched = self.whole.get_first(rest, origin);
            let (these, others) = rest.split_at(fetched.len());
            for (Small { position, .. }, fetched) in these.iter().zip(fetched) {
                if let Some(content) = fetched.ok().filter(|_| self.whole.verified().has(*position)) {
                    take(*position, &content, stopwatch);
                }
                // The next one came together with this one: nobody waited for it but while this one was taken.
                stopwatch = Stopwatch::start();
            }
            rest = others;
        }
    }

    /// What came for `position`, with the boot profile, stays until a program asks for it, or [`Objects::drop_ahead`].
    pub fn hold_small(&self, position: u32, bytes: usize) {
        self.budget.take(self.whole.verified().hold(position));
        self.watch(bytes as u64);
    }

    /// Programs find the object at `position` by themselves from here on: nobody needs to bring it again.
    pub fn mark_ready(&self, position: u32) {
        self.ready.lock().expect("no panic under the lock").insert(position);
    }

    /// What came for `position`, with the boot profile, is where programs find it by themselves.
    pub fn made_ready(&self, position: u32, bytes: usize, stopwatch: Stopwatch) {
        self.budget.take(bytes);
        self.mark_ready(position);
        let bytes = bytes as u64;
        self.record(stopwatch, Extent::around(position, 0, bytes), bytes, Origin::Preloaded, true);
        // A program that has asked for it meanwhile was told of it; it knows nothing of what is kept here.
        self.whole.verified().drop(position);
    }

    /// The kernel gets all of this object now, so that nothing needs to be kept here.
    pub fn drop_small(&self, position: u32) {
        self.budget.give_back(self.whole.verified().drop(position));
    }

    /// The kernel was given all of this object before a program has asked for it, and will not tell when one does. That
    /// the program which reads its neighbours reads it too is the best guess.
    pub fn stored_ahead(&self, position: u32, stopwatch: Stopwatch) {
        let size = self.index.get(position).map_or(0, |(_, size)| size);
        let origin = self.whole.verified().claim(position).unwrap_or(Origin::Neighbour);
        self.drop_small(position);
        self.recorder.count(|counters| match origin {
            Origin::Profile => counters.profile_used_bytes += size,
            _ => counters.neighbour_bytes += size,
        });
        self.record(stopwatch, Extent::around(position, 0, size), size, origin, true);
    }

    /// Lets go of everything that was fetched ahead and nobody has asked for. What was ready is so no more.
    pub fn drop_ahead(&self) {
        self.ready.lock().expect("no panic under the lock").clear();
        self.asked.close();
        self.handed_over.close();
        self.budget.give_back(self.whole.verified().drop_held() + self.pieces.drop_profile());
    }

    /// The `extent` of a large object is wanted on behalf of `origin`. Returns what of it is to be asked for: what nobody has
    /// asked for before.
    pub fn expect_piece(&self, extent: Extent, origin: Origin) -> Vec<Wanted> {
        // What the kernel asked for while the boot lasts, it has. A run is of use where it reads again, too, but not where no
        // program has read yet.
        let is_here = |block| match origin {
            Origin::Profile => self.asked.has(extent.position, block),
            _ => self.handed_over.has(extent.position, block),
        };
        let absent = self.pieces.expect(extent, origin, is_here);
        absent.into_iter().filter_map(|extent| Wanted::new(&self.index, extent)).collect()
    }

    /// A piece has come with the boot profile. Returns how many bytes; `None` if it could not be had, or does not verify.
    pub fn keep_piece(&self, wanted: &Wanted, data: Result<Vec<u8>, LinkError>) -> Option<usize> {
        let verified = self.verified(wanted, data);
        let bytes = verified.as_ref().map(Vec::len);
        self.budget.take(bytes.unwrap_or(0));
        self.pieces.arrive(wanted.extent, verified);
        bytes
    }

    /// The kernel is about to read a piece ahead of programs. `false` if they were faster.
    pub fn hand_over(&self, wanted: &Wanted) -> bool {
        // First: else a run may ask for it in the moment in which it is in neither place.
        self.handed_over.mark(wanted.extent);
        let seen = self.pieces.hand_over(wanted.extent);
        seen.into_iter().for_each(|bytes| self.watch(bytes));
        seen.is_some()
    }

    /// Whether it is the kernel that reads byte `offset` of the object at `position`, ahead of programs.
    pub fn is_handed_over(&self, position: u32, offset: u64) -> bool {
        let block = u32::try_from(offset / verity::BLOCK as u64);
        self.large(position).is_some() && block.is_ok_and(|block| self.pieces.is_handed_over(position, block))
    }

    /// Whether a program asks for these `bytes` of the boot profile is seen.
    pub fn watch(&self, bytes: u64) {
        self.recorder.count(|counters| counters.profile_bytes += bytes);
    }

    fn verified(&self, wanted: &Wanted, data: Result<Vec<u8>, LinkError>) -> Option<Vec<u8>> {
        data.ok().filter(|data| {
            let object = self.large(wanted.extent.position);
            object.is_some_and(|object| matches!(self.range_is_right(&object, wanted.offset, data), Ok(true)))
        })
    }

    /// A scan is about to come to the object at `position`: the beginning of a large one is asked for, and is for
    /// [`Objects::receive_run`].
    pub fn begin_run(&self, position: u32) -> Run {
        self.large(position)
            .map_or_else(Vec::new, |object| self.step_run(self.runs.begin(position, object.size), &object))
    }

    /// The kernel reads these bytes of the object at `position`: if a scan does that to a large one, what follows is asked
    /// for, and is for [`Objects::receive_run`].
    pub fn follow_run(&self, position: u32, offset: u64, len: u32) -> Run {
        let Some(object) = self.large(position).filter(|object| offset < object.size) else { return Vec::new() };
        let scanned = offset == 0 && self.neighbours.is_in_scan(position);
        let mut run = if scanned { self.begin_run(position) } else { Vec::new() };
        let range = offset..object.size.min(offset + u64::from(len));
        run.extend(self.step_run(self.runs.read(position, range, object.size), &object));
        run
    }

    fn step_run(&self, step: runs::Step, object: &Large) -> Run {
        if let Some(position) = step.give_up {
            self.pieces.drop_run(position);
            self.trees.give_up(&self.link, position);
        }
        for range in &step.ask {
            self.trees.expect(&self.link, object, range.clone());
        }
        let extents =
            step.ask.iter().filter_map(|range| Extent::around(object.position, range.start, range.end - range.start));
        let wanted: Vec<_> = extents.flat_map(|extent| self.expect_piece(extent, Origin::Neighbour)).collect();
        let tickets = self.link.read_ahead(&wanted);
        wanted.into_iter().zip(tickets).collect()
    }

    /// Waits for ranges that come ahead, and keeps them for the reads that follow.
    pub fn receive_run(&self, run: Run) {
        for (wanted, ticket) in run {
            let data = self.link.redeem(ticket);
            self.pieces.arrive(wanted.extent, self.verified(&wanted, data));
        }
    }

    fn demand_small(&self, object: &Small, stopwatch: Stopwatch) -> Fetched {
        let Small { position, size, .. } = *object;
        let origin = self.whole.claim(position).unwrap_or(Origin::Host);
        let fetched = self.whole.get(object, Origin::Cache);
        if origin == Origin::Profile {
            self.recorder.count(|counters| counters.profile_used_bytes += size);
        }
        // What the kernel asks for again says nothing new.
        if origin != Origin::Cache {
            self.record(stopwatch, Extent::around(position, 0, size), size, origin, fetched.is_ok());
        }
        fetched
    }

    fn record(&self, stopwatch: Stopwatch, extent: Option<Extent>, bytes: u64, origin: Origin, ok: bool) {
        let Some(extent) = extent.filter(|_| bytes > 0) else { return };
        let (bytes, origin) = if ok { (bytes, origin) } else { (0, Origin::Failed) };
        self.recorder.read(stopwatch, extent, bytes, origin);
    }

    /// Up to `len` bytes at byte `offset` of the object at `position` in the index; fewer only at its end.
    /// `None` if there is no such object.
    pub fn read(&self, position: u32, offset: u64, len: u32) -> Option<Result<Bytes, ReadError>> {
        let stopwatch = Stopwatch::start();
        let (id, size) = self.index.get(position)?;
        let start = offset.min(size);
        let end = size.min(start + u64::from(len));
        let read = if size <= SMALL {
            let whole = self.demand_small(&Small { position, id, size }, stopwatch);
            whole.map(|data| Bytes { data, start: start as usize, end: end as usize })
        } else {
            let (read, origin) = self.range(&Large { position, id, size }, start, end);
            self.record(stopwatch, Extent::around(position, start, end - start), end - start, origin, read.is_ok());
            read
        };
        if let Err(error) = &read {
            self.tell(position, error);
        }
        Some(read)
    }

    /// Says once that an object cannot be read, here (the console) and on the host. The kernel asks for every page
    /// of a failed read again.
    fn tell(&self, position: u32, error: &ReadError) {
        if self.told.lock().expect("no panic under the lock").insert(position) {
            complain(error);
            self.link.event(EventKind::Warning, monotonic_now(), &error.to_string());
        }
    }

    /// The object at `position`, if it is a small one.
    fn small(&self, position: u32) -> Option<Small> {
        let (id, size) = self.index.get(position).filter(|(_, size)| *size <= SMALL)?;
        Some(Small { position, id, size })
    }

    /// The object at `position`, if it is a large one.
    fn large(&self, position: u32) -> Option<Large> {
        let (id, size) = self.index.get(position).filter(|(_, size)| *size > SMALL)?;
        Some(Large { position, id, size })
    }

    fn range_is_right(&self, object: &Large, offset: u64, data: &[u8]) -> Result<bool, ReadError> {
        self.recorder.count(|counters| counters.verified_bytes += data.len() as u64);
        self.trees.prove(&self.link, object, offset, data)
    }

    /// A range of a large object, and where it came from.
    fn range(&self, object: &Large, start: u64, end: u64) -> (Result<Bytes, ReadError>, Origin) {
        // Whole blocks around the range: only they can be checked. The kernel asks for whole pages anyway.
        let block = verity::BLOCK as u64;
        let first = start / block * block;
        let last = end.next_multiple_of(block).min(object.size);
        let bytes = |data: Arc<Vec<u8>>, at: usize| {
            let end = at + (end - first) as usize;
            Bytes { data, start: at + (start - first) as usize, end }
        };
        let extent = Extent::around(object.position, first, last - first);
        extent.into_iter().for_each(|extent| self.asked.mark(extent));
        if let Some(found) = extent.and_then(|extent| self.pieces.take(extent, (last - first) as usize)) {
            self.budget.give_back(found.freed);
            self.recorder.count(|counters| {
                counters.profile_used_bytes += found.fresh.0;
                counters.neighbour_bytes += found.fresh.1;
            });
            return (Ok(bytes(found.data, found.start)), found.origin);
        }
        let fetched = self.fetch_range(object, first, last);
        (fetched.map(|data| bytes(Arc::new(data), 0)), Origin::Host)
    }

    fn fetch_range(&self, object: &Large, first: u64, last: u64) -> Result<Vec<u8>, ReadError> {
        let id = object.id;
        if first == last {
            return Ok(Vec::new());
        }
        // In a scan it is others who do the long work, ahead of this.
        if last - first >= LONG_WORK && !self.neighbours.is_in_scan(object.position) {
            placement::leave();
        }
        let told = |error| ReadError::Link { id, error };
        // What proves the range and the range itself are under way together.
        self.trees.expect(&self.link, object, first..last);
        let wire = Stopwatch::start();
        let len = |offset: u64| (last - offset).min(MAX_READ.into()) as u32;
        let ticket = self.link.range_ahead(id, first, len(first));
        let mut data = self.link.redeem(ticket).map_err(told)?;
        while first + (data.len() as u64) < last {
            let offset = first + data.len() as u64;
            data.extend_from_slice(&self.link.read(id, offset, len(offset)).map_err(told)?);
        }
        self.recorder.count(|counters| counters.wire.add(wire.elapsed()));
        if self.range_is_right(object, first, &data)? { Ok(data) } else { Err(ReadError::Corrupt(id)) }
    }
}
