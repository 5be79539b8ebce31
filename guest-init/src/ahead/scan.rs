//! Batches of a scan, put where the program finds them before it gets there.
//!
//! A program that reads one small file after the other waits for two things: for the bytes, and for threads to wake
//! each other, which costs more than the bytes do. So a scan's batches are fetched, verified and put by a thread of their own
//! into the layer ahead of this one ([`crate::ahead::memory_layer`]), as long as that is open and there is memory for it, and then into the
//! page cache, for which the kernel is told of all objects' inodes at once. The program then runs through a whole batch without
//! a single request. It stops at the first object of each, which is kept back: answering
//! that lets the next batch come, and never more than one.
//!
//! What is too large for a batch comes as a run ([`crate::ahead::runs`]), in a thread of its own: neither waits for the other.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use lazyroot_proto::reads::Origin;
use lazyroot_proto::verified::Verified;
use rustix::fs::{Mode, OFlags, RawDir};

use crate::ahead::large::RangeTickets;
use crate::ahead::stores::Stores;
use crate::layer_guard::LayerFolder;
use crate::threads;

/// How long a program that has reached a batch is made to wait for the rest of it. Waking it once is cheaper than
/// waking it for every object; if the link takes longer than this for a batch, the program waits for single objects.
const MAX_WAIT: Duration = Duration::from_millis(50);

/// Most objects of an image whose inodes the kernel is told of for a scan. It keeps about 1 KiB for each, until it needs
/// the memory.
const MAX_LISTED: usize = 1 << 15;

/// The threads that receive what scans asked for.
pub struct Scans {
    /// Positions of small objects that are to be put where programs find them.
    batches: Sender<Range<u32>>,
    /// Ranges of large objects that are to be verified and kept.
    runs: Sender<RangeTickets>,
    pending: Arc<Pending>,
}

/// Batches that are not yet where programs find them.
#[derive(Default)]
struct Pending {
    batches: Mutex<Vec<Range<u32>>>,
    done: Condvar,
}

impl Scans {
    /// Starts the threads that fill the memory layer and the page cache. `layer` is the data layer's root.
    pub fn start(stores: Arc<Stores>, layer: LayerFolder) -> std::io::Result<Self> {
        let (batches, batches_to_fill) = mpsc::channel();
        let (runs, runs_to_receive) = mpsc::channel::<RangeTickets>();
        let pending = Arc::<Pending>::default();
        let filler = Filler { stores: stores.clone(), layer: Some(layer), pending: pending.clone() };
        threads::start("ahead", move || filler.run(&batches_to_fill))?;
        threads::start("runs", move || runs_to_receive.into_iter().for_each(|run| stores.large.receive(run)))?;
        Ok(Self { batches, runs, pending })
    }

    /// Puts the objects at these positions, which were asked for, where programs find them.
    pub fn fill(&self, batch: Range<u32>) {
        self.pending.lock().push(batch.clone());
        // Fails only if the thread ended, which it does with us.
        let _ = self.batches.send(batch);
    }

    /// Receives what was asked for of large objects.
    pub fn receive(&self, tickets: RangeTickets) {
        if !tickets.is_empty() {
            let _ = self.runs.send(tickets);
        }
    }

    /// Waits a moment for the batch to be there.
    pub fn wait_for(&self, batch: &Range<u32>) {
        let is_pending = |batches: &mut Vec<Range<u32>>| batches.contains(batch);
        let _ = self.pending.done.wait_timeout_while(self.pending.lock(), MAX_WAIT, is_pending);
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Vec<Range<u32>>> {
        self.batches.lock().expect("no panic under the lock")
    }
}

struct Filler {
    stores: Arc<Stores>,
    /// The data layer's root, until it was listed.
    layer: Option<LayerFolder>,
    pending: Arc<Pending>,
}

impl Filler {
    fn run(mut self, batches: &Receiver<Range<u32>>) {
        for batch in batches {
            self.fill(&batch);
        }
    }

    fn fill(&mut self, batch: &Range<u32>) {
        let stores = self.stores.clone();
        // The first is kept back.
        stores.small.receive(batch.clone().skip(1), Origin::Neighbour, |position, content, stopwatch| {
            if self.place(position, content) {
                stores.small.record_placed(position, stopwatch);
            }
        });
        self.pending.lock().retain(|other| other != batch);
        self.pending.done.notify_all();
    }

    /// Puts an object where a program finds it. `false` if the kernel has no use for it.
    fn place(&mut self, position: u32, content: &Verified) -> bool {
        // If the kernel knows an object, a program has opened it from the data layer, and does not look elsewhere.
        if !self.stores.page_cache.knows(position) {
            if self.put_in_memory_layer(position, content) {
                return true;
            }
            self.list_inodes();
        }
        self.stores.page_cache.store(position, 0, content)
    }

    /// Puts an object into the memory layer, where it is opened faster than from FUSE, while there is memory for that.
    fn put_in_memory_layer(&self, position: u32, content: &Verified) -> bool {
        let Stores { budget, memory_layer, small, .. } = &*self.stores;
        if !budget.try_charge(content.len()) {
            return false;
        }
        let id = self.stores.content.index().get(position).map(|(id, _)| id);
        let put = id.is_some_and(|id| memory_layer.put(&id, content).is_ok());
        if put {
            small.insert_in_memory_layer(position);
        } else {
            budget.release(content.len());
        }
        put
    }

    /// Makes the kernel know all objects, once.
    fn list_inodes(&mut self) {
        if let Some(layer) = self.layer.take()
            && self.stores.content.index().entries().len() <= MAX_LISTED
        {
            // In a thread of its own: the thread that answers the listing may have to wait for us.
            let _ = threads::start("list", move || list(&layer));
        }
    }
}

/// Lists the data layer at `root`, of which this process is the server.
fn list(root: &LayerFolder) {
    let mut buffer = Vec::with_capacity(64 << 10);
    for byte in 0..=u8::MAX {
        let Some(root) = root.get() else { return };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(&root, format!("{byte:02x}"), flags, Mode::empty()) else { return };
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(Ok(_)) = entries.next() {}
    }
}
