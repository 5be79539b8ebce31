//! How fast the link to another lazyroot is, and so whether replies are worth compressing: see `peer`.

use std::time::Duration;

/// The link is judged anew after so many bytes.
const SAMPLE: u64 = 1 << 20;

/// Links slower than this (bytes a second) are worth compressing for, if zstd's fastest level takes in some 400 MB/s on
/// one core and halves programs and libraries: an estimate, to be replaced by figures of the benchmark.
const SLOW: f64 = 100e6;

/// Links faster than this are better without; the gap to [`SLOW`] keeps it from going to and fro.
const FAST: f64 = 250e6;

/// How fast the link is.
#[derive(Default)]
pub(super) struct Meter {
    bytes: u64,
    time: Duration,
}

impl Meter {
    /// Adds a frame; says whether replies should be packed from now on, if that is news.
    pub(super) fn add(&mut self, bytes: u64, time: Duration, packed: bool) -> Option<bool> {
        self.bytes += bytes;
        self.time += time;
        if self.bytes < SAMPLE {
            return None;
        }
        let speed = self.bytes as f64 / self.time.as_secs_f64().max(1e-9);
        *self = Self::default();
        match packed {
            false if speed < SLOW => Some(true),
            true if speed > FAST => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_link_is_packed_and_a_fast_one_is_not() {
        let second = Duration::from_secs(1);
        let mut meter = Meter::default();
        assert_eq!(meter.add(SAMPLE - 1, second, false), None, "too little to judge by");
        assert_eq!(meter.add(1, second, false), Some(true));
        assert_eq!(meter.add(50_000_000, second, true), None, "packed already");
        assert_eq!(meter.add(2_000_000_000, second, true), Some(false));
        assert_eq!(meter.add(2_000_000_000, second, false), None);
        for packed in [false, true] {
            assert_eq!(meter.add(200_000_000, second, packed), None, "in between it stays as it is");
        }
    }
}
