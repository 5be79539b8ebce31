//! Memory that may be used for what is fetched ahead of need.

use std::sync::{Condvar, Mutex};
use std::time::Instant;

/// So many bytes, of which some are in use.
pub struct Budget {
    bytes: usize,
    used: Mutex<usize>,
    released: Condvar,
}

impl Budget {
    /// `bytes`, none of them in use.
    pub fn new(bytes: usize) -> Self {
        Self { bytes, used: Mutex::new(0), released: Condvar::new() }
    }

    /// Waits until `bytes` more would fit, or nothing is in use; `false` if neither is so at `deadline`.
    pub fn wait_for(&self, bytes: usize, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let full = |used: &mut usize| *used > 0 && *used + bytes > self.bytes;
        let used = self.used.lock().expect("no panic under the lock");
        let (_used, outcome) = self.released.wait_timeout_while(used, left, full).expect("no panic under the lock");
        !outcome.timed_out()
    }

    /// Uses `bytes` more if they fit; whether they did.
    pub fn try_charge(&self, bytes: usize) -> bool {
        let mut used = self.used.lock().expect("no panic under the lock");
        let fits = *used + bytes <= self.bytes;
        *used += if fits { bytes } else { 0 };
        fits
    }

    /// Uses `bytes` more, whether they fit or not.
    pub fn charge(&self, bytes: usize) {
        *self.used.lock().expect("no panic under the lock") += bytes;
    }

    /// Frees `bytes` for others.
    pub fn release(&self, bytes: usize) {
        if bytes > 0 {
            let mut used = self.used.lock().expect("no panic under the lock");
            *used = used.saturating_sub(bytes);
            self.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_thread_that_needs_more_than_is_left_waits_for_it() {
        let budget = Budget::new(100);
        let soon = || Instant::now() + Duration::from_millis(5);
        assert!(budget.wait_for(1000, soon()), "what never fits is not waited for");
        budget.charge(60);
        assert!(budget.wait_for(40, soon()) && !budget.wait_for(41, soon()));
        assert!(!budget.try_charge(41) && budget.try_charge(40), "all is used");
        budget.release(40);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| budget.wait_for(41, Instant::now() + Duration::from_secs(60)));
            thread::sleep(Duration::from_millis(5));
            budget.release(1);
            assert!(waiter.join().unwrap());
        });
    }
}
