//! Memory that may be used for what is fetched ahead of need.

use std::sync::{Condvar, Mutex};
use std::time::Instant;

/// So many bytes, of which some are taken.
pub struct Budget {
    bytes: usize,
    taken: Mutex<usize>,
    returned: Condvar,
}

impl Budget {
    /// `bytes`, none of them taken.
    pub fn new(bytes: usize) -> Self {
        Self { bytes, taken: Mutex::new(0), returned: Condvar::new() }
    }

    /// Waits until `bytes` more would fit, or would even with nothing taken not; `false` if that is not so at `deadline`.
    pub fn wait_for(&self, bytes: usize, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let full = |taken: &mut usize| *taken > 0 && *taken + bytes > self.bytes;
        let taken = self.taken.lock().expect("no panic under the lock");
        let (_taken, outcome) = self.returned.wait_timeout_while(taken, left, full).expect("no panic under the lock");
        !outcome.timed_out()
    }

    /// Takes `bytes` if they fit; whether they did.
    pub fn take_if_there(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock().expect("no panic under the lock");
        let fits = *taken + bytes <= self.bytes;
        *taken += if fits { bytes } else { 0 };
        fits
    }

    /// Takes `bytes`.
    pub fn take(&self, bytes: usize) {
        *self.taken.lock().expect("no panic under the lock") += bytes;
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            let mut taken = self.taken.lock().expect("no panic under the lock");
            *taken = taken.saturating_sub(bytes);
            self.returned.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn whoever_needs_more_than_is_left_waits_for_it() {
        let budget = Budget::new(100);
        let soon = || Instant::now() + Duration::from_millis(5);
        assert!(budget.wait_for(1000, soon()), "what never fits is not waited for");
        budget.take(60);
        assert!(budget.wait_for(40, soon()) && !budget.wait_for(41, soon()));
        assert!(!budget.take_if_there(41) && budget.take_if_there(40), "all is taken");
        budget.give_back(40);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| budget.wait_for(41, Instant::now() + Duration::from_secs(60)));
            thread::sleep(Duration::from_millis(5));
            budget.give_back(1);
            assert!(waiter.join().unwrap());
        });
    }
}
