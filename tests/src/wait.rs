//! Waiting for what must come, however busy the machine is.

use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything that a test waits for takes, with every processor kept busy by something else.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How often we look.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `look` says yes.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub fn until(what: &str, mut look: impl FnMut() -> bool) {
    until_some(what, || look().then_some(()));
}

/// Waits until `look` finds something, and returns that.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(PAUSE);
    }
}
