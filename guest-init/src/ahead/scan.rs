//! Batches of a scan, put where the program finds them before it gets there.
//!
//! A program that reads one small file after the other waits for two things: for the bytes, and for threads to wake
//! each other, which costs more than the bytes do. So a scan's batches are fetched, verified and put by a thread of their own
//! into the layer ahead of this one ([`crate::ahead::ready_layer`]), as long as that is open and there is memory for it, and then into the
//! page cache, for which the kernel is told of all objects' inodes at once. The program then runs through a whole batch without
//! a single request. It stops at the first object of each, which is kept back: answering
//! that lets the next batch come, and never more than one.
//!
//! What is too large for a batch comes as a run ([`crate::ahead::runs`]), in a thread of its own: neither waits for the other.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::Duration;

use lazyroot_proto::reads::Origin;
use rustix::fs::{Mode, OFlags, RawDir};

use crate::ahead::page_cache::Pages;
use crate::ahead::ready_layer::Ready;
use crate::held::Folder;
use crate::objects::{Objects, Run};

/// How long a program that has reached a batch is made to wait for the rest of it. Waking it once is cheaper than
/// waking it for every object; a link that takes longer than this for a batch is what it waits for then.
const HOLD: Duration = Duration::from_millis(50);

/// Most objects of an image whose inodes the kernel is told of for a scan. It keeps about 1 KiB for each, until it needs
/// the memory.
const MAX_LISTED: usize = 1 << 15;

/// What is on its way ahead of the programs that read it.
pub struct Scans {
    /// The objects at these positions are to be found.
    batches: Sender<Range<u32>>,
    /// Ranges of large objects, to be there and checked when they are read.
    runs: Sender<Run>,
    pending: Arc<Pending>,
}

#[derive(Default)]
struct Pending {
    batches: Mutex<Vec<Range<u32>>>,
    done: Condvar,
}

impl Scans {
    /// Starts the threads that fill `ready` and `pages`. `layer` is the data layer's root.
    pub fn start(objects: Arc<Objects>, pages: Arc<Pages>, layer: Folder, ready: Arc<Ready>) -> std::io::Result<Self> {
        let (batches, batches_asked) = mpsc::channel();
        let (runs, runs_asked) = mpsc::channel();
        let pending = Arc::<Pending>::default();
        let runner = objects.clone();
        let filler = Filler { objects, pages, layer: Some(layer), ready, pending: pending.clone() };
        thread::Builder::new().name("ahead".into()).spawn(move || filler.run(&batches_asked))?;
        let receive = move || runs_asked.into_iter().for_each(|run| runner.receive_run(run));
        thread::Builder::new().name("runs".into()).spawn(receive)?;
        Ok(Self { batches, runs, pending })
    }

    /// Puts the objects at these positions, which were asked for, where programs find them.
    pub fn fill(&self, batch: Range<u32>) {
        self.pending.lock().push(batch.clone());
        // Fails only if the thread ended, which it does with us.
        let _ = self.batches.send(batch);
    }

    /// Takes in what was asked for of large objects.
    pub fn receive(&self, run: Run) {
        if !run.is_empty() {
            let _ = self.runs.send(run);
        }
    }

    /// Waits a moment for the batch to be there.
    pub fn hold_for(&self, batch: &Range<u32>) {
        let filled = |batches: &mut Vec<Range<u32>>| batches.contains(batch);
        let _ = self.pending.done.wait_timeout_while(self.pending.lock(), HOLD, filled);
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Vec<Range<u32>>> {
        self.batches.lock().expect("no panic under the lock")
    }
}

struct Filler {
    objects: Arc<Objects>,
    pages: Arc<Pages>,
    /// The data layer's root, until it was listed.
    layer: Option<Folder>,
    ready: Arc<Ready>,
    pending: Arc<Pending>,
}

impl Filler {
    fn run(mut self, batches: &Receiver<Range<u32>>) {
        for batch in batches {
            self.fill(&batch);
        }
    }

    fn fill(&mut self, batch: &Range<u32>) {
        // The first is kept back.
        let objects = self.objects.clone();
        objects.receive_small(batch.clone().skip(1), Origin::Neighbour, |position, content, stopwatch| {
            if self.give(position, content) {
                objects.stored_ahead(position, stopwatch);
            }
        });
        self.pending.lock().retain(|other| other != batch);
        self.pending.done.notify_all();
    }

    /// Puts an object where a program finds it. `false` if the kernel has no use for it.
    fn give(&mut self, position: u32, content: &[u8]) -> bool {
        // One that the kernel knows a program has opened from the data layer, and nowhere else.
        if !self.pages.knows(position) {
            if self.make_ready(position, content) {
                return true;
            }
            self.list();
        }
        self.pages.store(position, 0, content)
    }

    /// Puts an object into the layer ahead, where it is opened faster than from FUSE, while there is memory for that.
    fn make_ready(&self, position: u32, content: &[u8]) -> bool {
        let (budget, index) = (self.objects.budget(), self.objects.index());
        if !budget.take_if_there(content.len()) {
            return false;
        }
        let made = index.get(position).is_some_and(|(id, _)| self.ready.put(&id, content).is_ok());
        if made {
            self.objects.mark_ready(position);
        } else {
            budget.give_back(content.len());
        }
        made
    }

    /// Makes the kernel know all objects, once.
    fn list(&mut self) {
        if let Some(layer) = self.layer.take()
            && self.objects.index().entries().len() <= MAX_LISTED
        {
            // In a thread of its own: whoever answers the listing may have to wait for us.
            let _ = thread::Builder::new().name("list".into()).spawn(move || list(&layer));
        }
    }
}

/// Lists the data layer at `root`, of which this process is the server.
fn list(root: &Folder) {
    let mut buffer = Vec::with_capacity(64 << 10);
    for byte in 0..=u8::MAX {
        let Some(root) = root.get() else { return };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = rustix::fs::openat(&root, format!("{byte:02x}"), flags, Mode::empty()) else { return };
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(Ok(_)) = entries.next() {}
    }
}
