//! All that is fetched before a program asks for it.
//!
//! This folder decides what to ask for early, keeps what has arrived, and puts it where programs find it. It fetches
//! and verifies nothing on its own: that is [`crate::content`]. It answers no request of the kernel: that is
//! [`crate::fuse`], which tells [`Ahead`] of every LOOKUP and READ.
//!
//! | what | who asks for it | who receives it | where it waits | who drops it |
//! |---|---|---|---|---|
//! | an opened small object | [`Ahead::on_lookup`] | the READ | as a ticket, in `content::small` | the READ; or the 65th LOOKUP after it |
//! | neighbours of small objects that were read ([`sequences`]) | [`Ahead::on_lookup`], [`Ahead::on_read`] | the READ | as tickets, in `content::small` | the READ; or the sequence, when it has passed them |
//! | the same in a scan ([`scan`]) | the same | thread `ahead` | [`memory_layer`] while the budget lasts, else the kernel's [`page_cache`] | [`memory_layer`] after the boot; the kernel, when it needs the memory |
//! | the next ranges of a large object in a scan ([`runs`]) | [`Ahead::on_lookup`], [`Ahead::on_read`] | thread `runs` | [`segments`] | the READ of their last block; or the run, when it ends |
//! | small objects of the boot profile ([`profile`]) | thread `prefetch` | thread `prefetch` | [`memory_layer`]; a watched sample pinned in `content::cache` | thread `prefetch` after the boot; a READ drops what is pinned |
//! | ranges of the boot profile | thread `prefetch` | thread `prefetch` | [`segments`] | the READ of their last block; thread `prefetch` after the boot |
//! | the same, but for a watched sample and files that are read front to back ([`kernel`]) | thread `readahead`, by fadvise(2) | the kernel, by READs of its own | EROFS' page cache | the kernel, when it needs the memory |
//! | nodes of Merkle trees | whoever asks for a range, with it | whoever verifies the range | as tickets, then in the cache of `content::merkle` | the cache, the least recently used first |
//!
//! [`block_set`] remembers which blocks the kernel has, so that neither the profile nor a run brings them again. [`budget`] is
//! the memory that the boot profile and the memory layer share.

pub mod block_set;
pub mod budget;
pub mod kernel;
pub mod large;
pub mod memory_layer;
pub mod page_cache;
pub mod profile;
pub mod runs;
pub mod scan;
pub mod segments;
pub mod sequences;
pub mod small;
pub mod stores;

use std::io;
use std::ops::Range;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use lazyroot_proto::reads::Origin;
use lazyroot_proto::verified::Verified;

use crate::content::Content;
use crate::content::object::{Object, ObjectPart, SMALL};
use crate::layer_guard::LayerFolder;
use crate::link::ObjectRange;
use crate::link::recorder::Stopwatch;
use memory_layer::MemoryLayer;
use page_cache::PageCache;
use scan::Scans;
use sequences::{SequencePlan, Sequences};
use stores::Stores;

/// Decides what to fetch early, as programs look objects up and read them.
pub struct Ahead {
    stores: Arc<Stores>,
    sequences: Sequences,
    /// Set once scans are to be recognised.
    scans: OnceLock<Scans>,
}

impl Ahead {
    /// Nothing is fetched yet. What is fetched of `content` may take `budget` bytes in `memory_layer` and on behalf of the
    /// boot profile.
    pub fn new(content: Arc<Content>, memory_layer: MemoryLayer, budget: usize) -> Self {
        let stores = Arc::new(Stores::new(content, memory_layer, budget));
        Self { stores, sequences: Sequences::default(), scans: OnceLock::new() }
    }

    /// The kernel's page cache of the data layer.
    pub fn page_cache(&self) -> &PageCache {
        &self.stores.page_cache
    }

    /// What the threads that fetch ahead share.
    pub fn stores(&self) -> &Arc<Stores> {
        &self.stores
    }

    /// Fetches the image's boot profile in a thread of its own. Ranges that are here and that the kernel may read ahead go to
    /// `to_kernel`.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start_profile(&self, to_kernel: Sender<Vec<ObjectRange>>) -> io::Result<()> {
        profile::start(self.stores.clone(), to_kernel)
    }

    /// From here on scans are recognised, and their objects put where programs find them before they get there. `layer` is
    /// the root of the data layer.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start_scans(&self, layer: LayerFolder) -> io::Result<()> {
        let scans = Scans::start(self.stores.clone(), layer)?;
        // Nobody else sets it.
        let _ = self.scans.set(scans);
        Ok(())
    }

    /// The kernel looks the object at `position` up. overlayfs does that when a program opens the file, so the object is
    /// about to be read.
    pub fn on_lookup(&self, position: u32) {
        self.follow_sequence(position);
        self.stores.small.on_open(position);
    }

    /// The kernel asks for a part of an object: what seems to be read next is asked for. Returns the batch of a scan that
    /// begins with the object, for [`Ahead::wait_for`].
    pub fn on_read(&self, part: &ObjectPart) -> Option<Range<u32>> {
        match part.object {
            Object::Small(object) => self.follow_sequence(object.position),
            Object::Large(object) => {
                if let Some(scans) = self.scans.get()
                    && part.bytes.start < object.size
                {
                    let in_scan = part.bytes.start == 0 && self.is_in_scan(object.position);
                    let mut tickets = if in_scan { self.stores.large.begin_run(object.position) } else { Vec::new() };
                    tickets.extend(self.stores.large.follow_run(&object, part.bytes.clone()));
                    scans.receive(tickets);
                }
                None
            }
        }
    }

    /// Asks for what seems to be read after the object at `position`. Returns the batch of a scan that begins with it.
    fn follow_sequence(&self, position: u32) -> Option<Range<u32>> {
        let plan = self.plan_sequence(position);
        let scans = self.scans.get()?;
        plan.between.for_each(|position| scans.receive(self.stores.large.begin_run(position)));
        if let Some(batch) = plan.request.filter(|_| plan.scan) {
            scans.fill(batch);
        }
        // A thread that waits for the batch must not be what the batch waits for: only its first object is left out of it.
        plan.scan_batch.filter(|batch| batch.start == position)
    }

    fn plan_sequence(&self, position: u32) -> SequencePlan {
        let index = self.stores.content.index();
        let Some((_, 1..=SMALL)) = index.get(position) else { return SequencePlan::default() };
        let plan = self.sequences.record_miss(index, position, SMALL);
        for range in plan.forget.iter().cloned() {
            self.stores.small.forget(range);
        }
        if let Some(batch) = plan.request.clone() {
            self.stores.small.request(batch, Origin::Neighbour);
        }
        plan
    }

    /// Whether a scan has come to the object at `position`.
    pub fn is_in_scan(&self, position: u32) -> bool {
        self.sequences.is_in_scan(position)
    }

    /// Waits a moment for the batch of a scan to be where programs find it.
    pub fn wait_for(&self, batch: &Range<u32>) {
        if let Some(scans) = self.scans.get() {
            scans.wait_for(batch);
        }
    }

    /// Whether it is the kernel that reads this part, ahead of programs.
    pub fn is_kernel_readahead(&self, part: &ObjectPart, offset: u64) -> bool {
        part.object.large().is_some_and(|object| self.stores.large.is_kernel_readahead(&object, offset))
    }

    /// A part of a large object, if it is here or on its way: a program has waited for it since `stopwatch` started. Small
    /// objects wait in [`Content`].
    pub fn read(&self, part: &ObjectPart, stopwatch: Stopwatch) -> Option<Verified> {
        self.stores.large.read(&part.object.large()?, part, stopwatch)
    }

    /// The kernel gets all of the small object at `position` now, so that nothing needs to be kept of it.
    pub fn on_whole_read(&self, position: u32) {
        self.stores.small.release(position);
    }
}
