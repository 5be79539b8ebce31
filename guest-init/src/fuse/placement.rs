//! Which processor a thread that answers programs runs on.
//!
//! A program that asks the kernel for a name or a page waits for the answer, and has it soonest from a thread on its own
//! processor: waking another processor takes longer than most answers. Long work is better done elsewhere, while the
//! program goes on.

use std::cell::RefCell;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Bytes that are worth going elsewhere for: fetching and hashing them takes longer than waking a processor.
pub const LONG_WORK: u64 = 128 << 10;

thread_local! {
    static HOME: RefCell<Option<Home>> = const { RefCell::new(None) };
}

/// Where a thread belongs.
struct Home {
    processor: CpuSet,
    /// All that the process may use.
    all: CpuSet,
    away: bool,
}

/// The calling thread belongs to this processor from here on, if the process may use it; else it runs where the system
/// likes.
pub fn settle(processor: usize) {
    let Some(all) = sched_getaffinity(None).ok().filter(|all| all.is_set(processor)) else { return };
    let mut only = CpuSet::new();
    only.set(processor);
    HOME.set(sched_setaffinity(None, &only).is_ok().then_some(Home { processor: only, all, away: false }));
}

/// Long work is next: the calling thread may do it on any processor.
pub fn leave() {
    go(true);
}

/// Somebody waits for a short answer: the calling thread gives it on the processor that it belongs to.
pub fn return_home() {
    go(false);
}

fn go(away: bool) {
    HOME.with_borrow_mut(|home| {
        if let Some(home) = home.as_mut().filter(|home| home.away != away) {
            // Only the time depends on it.
            let _ = sched_setaffinity(None, if away { &home.all } else { &home.processor });
            home.away = away;
        }
    });
}
