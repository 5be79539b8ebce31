//! What programs read and how long they waited, told to the host: it shows it to people, and remembers what a boot
//! reads for the next one.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::frame::{MAX_GUEST_WRITE, Request};
use lazyroot_proto::reads::{Counters, Extent, Origin, Read};

use crate::clock::monotonic_now;
use crate::link::connection::Link;
use crate::threads;

/// How long news may wait for more of them: seldom enough that telling costs nothing, often enough for somebody who
/// watches.
const PAUSE: Duration = Duration::from_millis(200);

/// Reads that are told one by one, as many as the host keeps of a session.
const MAX_READS: usize = 1 << 15;

/// Reads in one frame: what one write to the host may carry, with room for the header.
const READS_PER_FRAME: usize = (MAX_GUEST_WRITE - 256) / Read::LEN;

/// Collects what happens, and tells the host a little later.
pub struct Recorder {
    link: Arc<Link>,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    reads: Vec<Read>,
    /// Reads taken down so far.
    total: usize,
    counters: Counters,
    /// Whether the host has not been told everything.
    dirty: bool,
    /// Whether the thread that tells is to end.
    over: bool,
}

/// A moment, to measure from.
#[derive(Clone, Copy)]
pub struct Stopwatch {
    /// In microseconds since the kernel started.
    at: u64,
    started: Instant,
}

impl Stopwatch {
    /// Now.
    pub fn start() -> Self {
        Self { at: monotonic_now() / 1000, started: Instant::now() }
    }

    /// Microseconds since.
    pub fn elapsed(&self) -> u64 {
        self.started.elapsed().as_micros().try_into().unwrap_or(u64::MAX)
    }
}

impl Recorder {
    /// Starts the thread that tells the host over `link`; it ends after [`Recorder::close`].
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn start(link: Arc<Link>) -> std::io::Result<Arc<Self>> {
        let recorder = Arc::new(Self { link, state: Mutex::default(), news: Condvar::new() });
        let teller = recorder.clone();
        threads::start("recorder", move || {
            while teller.wait_for_news() {
                thread::sleep(PAUSE);
                teller.flush();
            }
        })?;
        Ok(recorder)
    }

    /// A program's read of `extent`, `bytes` long, which began with `stopwatch` and is over.
    pub fn read(&self, stopwatch: Stopwatch, extent: Extent, bytes: u64, origin: Origin) {
        let waited = stopwatch.elapsed().try_into().unwrap_or(u32::MAX);
        self.change(|state| {
            state.counters.reads[origin as usize] += 1;
            state.counters.read_bytes[origin as usize] += bytes;
            if state.total < MAX_READS {
                state.total += 1;
                state.reads.push(Read { extent, at: stopwatch.at, waited, origin });
            }
        });
    }

    /// Changes the counters.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.change(|state| change(&mut state.counters));
    }

    /// Counts `bytes` of the boot profile, of which it is known whether a program reads them.
    pub fn watch_profile(&self, bytes: u64) {
        self.count(|counters| counters.profile_bytes += bytes);
    }

    /// Tells the host now what it has not been told.
    pub fn flush(&self) {
        let (reads, counters) = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.dirty) {
                return;
            }
            (std::mem::take(&mut state.reads), state.counters.clone())
        };
        // All at best effort: what a broken connection loses is a hint.
        for reads in reads.chunks(READS_PER_FRAME) {
            self.link.notify(&Request::Reads(reads.to_vec()));
        }
        self.link.notify(&Request::Counters(Box::new(counters)));
    }

    /// Ends the thread.
    pub fn close(&self) {
        self.change(|state| state.over = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        if !std::mem::replace(&mut state.dirty, true) {
            self.news.notify_one();
        }
    }

    /// Waits until there is something to tell; `false` once the thread is to end.
    fn wait_for_news(&self) -> bool {
        let idle = |state: &mut State| !state.dirty && !state.over;
        let state = self.news.wait_while(self.lock(), idle).expect("no panic under the lock");
        !state.over
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }
}
