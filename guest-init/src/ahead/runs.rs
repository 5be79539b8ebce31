//! Runs: large objects that a scan reads from front to back. What comes next is asked for, and checked, before the kernel
//! asks for it.
//!
//! The kernel reads ahead too, but begins small with each file, and each of its reads waits in turn for the host, for a
//! hash and for a copy, while the program does nothing. So when a scan of many files opens a large one, its beginning
//! is asked for at once, and the rest a fixed distance ahead, cut where the kernel's own reads are cut: each of those is
//! answered with what one request brought. A file that is read by itself has no run: its reads are hashed by as many
//! threads as the kernel has reads under way, which is as fast, and a program that jumps about in it pays nothing.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

/// How far ahead of a read its run is asked for, in bytes: with two reads of the kernel's under way that is two more on
/// the wire or being checked.
const AHEAD: u64 = 1 << 20;

/// What a scan that opens an object asks for at once, in bytes: until then the kernel's reads have grown to their full
/// length.
const AT_FIRST: u64 = 512 << 10;

/// Runs at a time, each with [`AHEAD`] bytes of memory at most.
const RUNS: usize = 8;

/// What the kernel reads at a time at most, and so reads ahead, in bytes. Its own default is half of that, its limit
/// 1 MiB; sequential reads are as fast with each, but programs that jump about in large files (python and its libraries)
/// fetch a quarter less than with 1 MiB.
pub const LONGEST_READ: u32 = 256 << 10;

/// See the module.
pub struct Runs {
    /// The kernel's longest reads, in bytes; an object that is read so is read from front to back.
    longest: u64,
    /// The one used last comes last.
    runs: Mutex<VecDeque<Run>>,
}

struct Run {
    position: u32,
    /// The end of what was read.
    read: u64,
    /// The end of what was asked for. Once all of it was read the run makes place for others in its turn: what is left
    /// of its segments is dropped with it.
    requested: u64,
}

/// What a read leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RunPlan {
    /// Ranges to ask for now, in bytes, each no longer than the kernel's longest read.
    pub request: Vec<Range<u64>>,
    /// The object, by position, of which nothing more needs to be kept.
    pub forget: Option<u32>,
}

impl Runs {
    /// None, in a kernel whose longest reads have this many bytes.
    pub fn new(longest: u64) -> Self {
        Self { longest, runs: Mutex::default() }
    }

    /// A scan opens the object of `size` bytes at `position`: it is going to be read whole.
    pub fn begin(&self, position: u32, size: u64) -> RunPlan {
        let mut runs = self.lock();
        if runs.iter().any(|run| run.position == position) {
            return RunPlan::default();
        }
        let requested = size.min(AT_FIRST);
        let forget = push(&mut runs, Run { position, read: 0, requested });
        RunPlan { request: self.cut(0..requested, 0), forget }
    }

    /// The kernel reads this range, in bytes, of the object of `size` bytes at `position`.
    pub fn read(&self, position: u32, range: Range<u64>, size: u64) -> RunPlan {
        let mut runs = self.lock();
        let mut run = match runs.iter().position(|run| run.position == position).and_then(|found| runs.remove(found)) {
            Some(run) => run,
            None => return RunPlan::default(),
        };
        // Several threads answer the kernel: a read may come before the one before it, which then comes late. How late is
        // up to the scheduler, so what was read lately says nothing against the run.
        if range.start > run.read + AHEAD {
            return RunPlan { request: Vec::new(), forget: Some(position) };
        }
        run.read = run.read.max(range.end);
        run.requested = run.requested.max(run.read);
        let end = (run.read + AHEAD).min(size);
        let worth_it = end - run.requested >= self.longest || end == size && run.requested < size;
        let mut plan = RunPlan::default();
        if range.end - range.start >= self.longest && worth_it {
            plan.request = self.cut(run.requested..end, range.end);
            run.requested = end;
        }
        plan.forget = push(&mut runs, run);
        plan
    }

    /// Cuts `range` into what the kernel will read at a time, if one of its reads begins at `edge`.
    fn cut(&self, range: Range<u64>, edge: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let beyond = (start + self.longest - edge % self.longest) % self.longest;
            let end = range.end.min(start + self.longest - beyond);
            ranges.push(start..end);
            start = end;
        }
        ranges
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Run>> {
        self.runs.lock().expect("no panic under the lock")
    }
}

/// Adds a run; returns the position of the oldest if there is no place for it.
fn push(runs: &mut VecDeque<Run>, run: Run) -> Option<u32> {
    runs.push_back(run);
    if runs.len() > RUNS { runs.pop_front().map(|run| run.position) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 256 << 10;
    const SIZE: u64 = 10 << 20;

    fn asks(plan: &RunPlan) -> Range<u64> {
        plan.request.first().map_or(0, |first| first.start)..plan.request.last().map_or(0, |last| last.end)
    }

    #[test]
    fn a_scan_has_the_beginning_at_once_and_the_rest_as_the_kernel_reads_it() {
        let runs = Runs::new(LONGEST);
        assert_eq!(asks(&runs.begin(7, SIZE)), 0..AT_FIRST);
        assert_eq!(runs.begin(7, SIZE), RunPlan::default(), "once");
        let mut offset = 0;
        for len in [32 << 10, 64 << 10, 128 << 10] {
            assert_eq!(runs.read(7, offset..offset + len, SIZE), RunPlan::default(), "the kernel begins small");
            offset += len;
        }
        let mut requested = AT_FIRST;
        while offset < SIZE {
            let end = SIZE.min(offset + LONGEST);
            let plan = runs.read(7, offset..end, SIZE);
            for range in &plan.request {
                assert_eq!(range.start, requested, "all of it, once");
                assert!(range.end == SIZE || range.end % LONGEST == end % LONGEST, "cut as the kernel reads");
                assert!(range.end - range.start <= LONGEST);
                requested = range.end;
            }
            assert!(requested <= (end + AHEAD).min(SIZE) && requested >= SIZE.min(end + LONGEST));
            assert_eq!(plan.forget, None);
            offset = end;
        }
        assert_eq!(requested, SIZE);
    }

    #[test]
    fn what_is_read_otherwise_asks_for_nothing() {
        let runs = Runs::new(LONGEST);
        assert_eq!(runs.read(7, 0..LONGEST, SIZE), RunPlan::default(), "no scan has opened it");
        assert_eq!(asks(&runs.begin(6, 300 << 10)), 0..300 << 10);
        assert_eq!(runs.read(6, 0..300 << 10, 300 << 10), RunPlan::default(), "there is no more");
        runs.begin(7, SIZE);
        assert_ne!(runs.read(7, LONGEST..2 * LONGEST, SIZE), RunPlan::default());
        assert_eq!(runs.read(7, 0..LONGEST, SIZE), RunPlan::default(), "a read that was overtaken");
        runs.read(7, 2 * LONGEST..7 * LONGEST, SIZE);
        assert_eq!(runs.read(7, LONGEST..2 * LONGEST, SIZE).forget, None, "and one that was overtaken by many");
        assert_eq!(runs.read(7, SIZE / 2..SIZE / 2 + 4096, SIZE).forget, Some(7), "a jump ends it");
        let forgotten: Vec<_> = (10..20).filter_map(|position| runs.begin(position, SIZE).forget).collect();
        assert_eq!(forgotten, [6, 10, 11], "the oldest makes place");
    }
}
