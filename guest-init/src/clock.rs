//! The guest's clock.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the kernel started (CLOCK_MONOTONIC).
pub fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
