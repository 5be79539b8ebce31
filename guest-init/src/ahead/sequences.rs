//! Sequences: small objects that are read one after the other are asked for many at a time.
//!
//! Positions in the object index follow the tree, so a program that walks it (tar, grep, a copy) misses on one
//! position after the next, and each miss alone costs a round trip. Once two misses follow each other, the objects
//! after them are asked for along, in batches that double while they are used, and halve when most of one is not, as where
//! a program picks a few files of each folder. A miss elsewhere begins a sequence of its own with nothing asked ahead: who
//! reads at random pays nothing.
//!
//! One batch is on its way while the one before is read, as with the kernel's own readahead. Once a sequence has grown
//! to full batches it is a *scan*: its batches go into the page cache ([`crate::ahead::scan`]), and only the first object of
//! each is left for the kernel to ask for, which tells how far the program has got.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use lazyroot_proto::index::ObjectIndex;

/// Objects in the first batch of a sequence, and in the largest: enough that the round trips no longer show, few
/// enough that one batch is well under a second even where a megabyte takes 20 ms.
const FIRST_WINDOW: u32 = 4;
const MAX_WINDOW: u32 = 64;

/// Bytes of one batch at most; there are two of them at a time in a sequence.
const MAX_BATCH_BYTES: u64 = 1 << 20;

/// A batch of which less than one in so many objects was asked for is followed by a smaller one.
const WORTH_IT: u32 = 3;

/// How far a miss may lie from where a sequence is and still belong to it: between them lie files that are in the page
/// cache already, or that the program has no use for.
const GAP: u32 = 8;

/// Sequences followed at a time: a few programs may walk the tree at once.
const SEQUENCES: usize = 4;

/// Programs on their way through the tree, as far as the misses tell.
#[derive(Default)]
pub struct Sequences(Mutex<State>);

#[derive(Default)]
struct State {
    /// The one used last comes last.
    sequences: Vec<Sequence>,
}

/// A program on its way through the tree.
#[derive(Debug, Default)]
struct Sequence {
    /// The position of the last miss.
    last: u32,
    /// Objects to ask for at a time; 0 for the first miss, which is no sequence yet.
    window: u32,
    /// The first position that was not asked for.
    next: u32,
    /// What was asked for and lies at or behind the last miss.
    batches: VecDeque<Batch>,
}

/// Objects that were asked for together.
#[derive(Debug)]
struct Batch {
    positions: Range<u32>,
    /// How many of them the kernel has asked for: of a scan's, only of those that it does not find by itself.
    misses: u32,
}

/// What a miss leads to.
#[derive(Debug, Default, PartialEq)]
pub struct SequencePlan {
    /// What to ask for now: consecutive positions.
    pub request: Option<Range<u32>>,
    /// What was asked for before and is not needed any more.
    pub forget: Vec<Range<u32>>,
    /// Whether what is asked for belongs to a scan.
    pub scan: bool,
    /// The batch of a scan that the missed object lies in.
    pub scan_batch: Option<Range<u32>>,
    /// What a scan passes between what was asked for before and what is asked for now: too long for a batch, or empty.
    pub between: Range<u32>,
}

impl Sequences {
    /// Records that the kernel asked for the object at `position`. Objects of more than `longest` bytes are never
    /// asked for ahead.
    pub fn record_miss(&self, index: &ObjectIndex, position: u32, longest: u64) -> SequencePlan {
        self.0.lock().expect("no panic under the lock").record_miss(index, position, longest)
    }

    /// Whether a scan has come to the object at `position`, of any length.
    pub fn is_in_scan(&self, position: u32) -> bool {
        let state = self.0.lock().expect("no panic under the lock");
        state.sequences.iter().any(|sequence| sequence.window == MAX_WINDOW && sequence.leads_to(position))
    }
}

impl State {
    fn record_miss(&mut self, index: &ObjectIndex, position: u32, longest: u64) -> SequencePlan {
        // The kernel asks for an object a second time if it has not taken in the first answer yet.
        if self.sequences.iter().any(|sequence| sequence.last == position) {
            return SequencePlan::default();
        }
        let (mut sequence, forget) = self.follow(position);
        let in_scan = sequence.window == MAX_WINDOW;
        let scan_batch = sequence.batches.front().map(|batch| &batch.positions);
        let scan_batch = scan_batch.filter(|batch| in_scan && batch.contains(&position)).cloned();
        let behind = sequence.next;
        let request = sequence.next_batch(index, longest);
        let scan = sequence.window == MAX_WINDOW;
        let between = request.as_ref().filter(|_| scan).map_or(0..0, |batch| behind..batch.start);
        self.sequences.push(sequence);
        SequencePlan { request, forget, scan, scan_batch, between }
    }

    /// The sequence that a miss at `position` belongs to, taken out, and what was asked for in vain.
    fn follow(&mut self, position: u32) -> (Sequence, Vec<Range<u32>>) {
        match self.sequences.iter().position(|sequence| sequence.leads_to(position)) {
            Some(found) => {
                let mut sequence = self.sequences.remove(found);
                let behind = sequence.advance(position);
                (sequence, behind)
            }
            None => {
                let oldest = if self.sequences.len() == SEQUENCES { Some(self.sequences.remove(0)) } else { None };
                let useless = oldest.into_iter().flat_map(|sequence| sequence.batches).map(|batch| batch.positions);
                (Sequence { last: position, next: position + 1, ..Sequence::default() }, useless.collect())
            }
        }
    }
}

impl Sequence {
    fn leads_to(&self, position: u32) -> bool {
        (self.last..self.next.saturating_add(GAP)).contains(&position)
    }

    /// Moves on to a miss; returns the batches that lie before it.
    fn advance(&mut self, position: u32) -> Vec<Range<u32>> {
        self.last = position;
        self.next = self.next.max(position);
        let behind = self.batches.iter().take_while(|batch| batch.positions.end <= position).count();
        let behind: Vec<_> = self.batches.drain(..behind).collect();
        if let Some(batch) = self.batches.front_mut().filter(|batch| batch.positions.contains(&position)) {
            batch.misses += 1;
        }
        if self.window < MAX_WINDOW && behind.iter().any(Batch::is_hardly_used) {
            // Twice halved, for the next is doubled.
            self.window = (self.window / 4).max(FIRST_WINDOW / 2);
        }
        behind.into_iter().map(|batch| batch.positions).collect()
    }

    /// What to ask for now, if anything: so that the batch behind the one that is being read is on its way.
    fn next_batch(&mut self, index: &ObjectIndex, longest: u64) -> Option<Range<u32>> {
        if self.batches.len() >= 2 {
            return None;
        }
        if self.window == 0 {
            // The first miss: the next one shows whether a sequence begins here.
            self.window = FIRST_WINDOW / 2;
            return None;
        }
        self.window = (2 * self.window).min(MAX_WINDOW);
        let batch = batch(index, self.next, self.window, longest);
        self.next = batch.end;
        if batch.is_empty() {
            return None;
        }
        self.batches.push_back(Batch { positions: batch.clone(), misses: 0 });
        Some(batch)
    }
}

impl Batch {
    fn is_hardly_used(&self) -> bool {
        self.misses * WORTH_IT < self.positions.len() as u32
    }
}

/// The next objects from `from` on that can be asked for together: consecutive, each of 1 to `longest` bytes.
fn batch(index: &ObjectIndex, from: u32, window: u32, longest: u64) -> Range<u32> {
    let fits = |size: u64| (1..=longest).contains(&size);
    let rest = index.entries().get(from as usize..).unwrap_or_default();
    let skipped = rest.iter().take(GAP as usize).take_while(|(_, size)| !fits(*size)).count();
    let mut bytes = 0;
    let objects = rest[skipped..].iter().take(window as usize).take_while(|(_, size)| {
        bytes += size;
        fits(*size) && bytes <= MAX_BATCH_BYTES
    });
    let first = from + skipped as u32;
    first..first + objects.count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::{Algorithm, verity};

    fn index(sizes: &[u64]) -> ObjectIndex {
        let entry = |(number, size): (usize, &u64)| (verity::digest(Algorithm::Sha256, &number.to_le_bytes()), *size);
        ObjectIndex::new(Algorithm::Sha256, sizes.iter().enumerate().map(entry).collect()).unwrap()
    }

    /// What a miss asks for, and how many batches it gives up.
    fn miss(state: &mut State, index: &ObjectIndex, position: u32) -> (Range<u32>, usize) {
        let plan = state.record_miss(index, position, 1000);
        (plan.request.unwrap_or(0..0), plan.forget.len())
    }

    #[test]
    fn a_batch_ends_before_a_large_object_and_the_next_begins_behind_it() {
        let index = index(&[10, 10, 5000, 10, 10, 10]);
        assert_eq!(batch(&index, 0, 8, 1000), 0..2);
        assert_eq!(batch(&index, 2, 8, 1000), 3..6);
        assert_eq!(batch(&index, 3, 2, 1000), 3..5);
        assert_eq!(batch(&index, 6, 8, 1000), 6..6);
        assert_eq!(batch(&index, 99, 8, 1000), 99..99);
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let index = index(&[1000; 2000]);
        assert_eq!(batch(&index, 0, 2000, 1000).len() as u64, MAX_BATCH_BYTES / 1000);
    }

    #[test]
    fn batches_double_along_a_sequence_and_one_is_always_ahead() {
        let (index, mut state) = (index(&[10; 4000]), State::default());
        assert_eq!(miss(&mut state, &index, 100).0, 0..0, "one miss is no sequence");
        assert_eq!(miss(&mut state, &index, 101).0, 101..105);
        assert_eq!(miss(&mut state, &index, 102).0, 105..113);
        assert_eq!(miss(&mut state, &index, 103).0, 0..0, "one is read and one is on its way");
        for (batch, next) in [(105..113, 113..129), (113..129, 129..161), (129..161, 161..225)] {
            assert_eq!(miss(&mut state, &index, batch.start), (next, 1));
            for position in batch.skip(1) {
                assert_eq!(miss(&mut state, &index, position), (0..0, 0));
            }
        }
        // Whoever is in the page cache already is not asked for.
        assert_eq!(miss(&mut state, &index, 170), (225..289, 1));
    }

    #[test]
    fn a_scan_says_which_large_objects_it_passes() {
        let mut sizes = [10; 4000];
        sizes[225..227].fill(5000);
        let (index, mut state) = (index(&sizes), State::default());
        for position in 100..129 {
            assert_eq!(state.record_miss(&index, position, 1000).between, 0..0, "no scan yet");
        }
        assert_eq!(state.record_miss(&index, 129, 1000).between, 161..161, "none");
        assert_eq!(state.record_miss(&index, 170, 1000).between, 225..227);
    }

    #[test]
    fn batches_shrink_where_most_of_them_is_not_read_and_grow_again_where_it_is() {
        let (index, mut state) = (index(&[10; 4000]), State::default());
        (100..113).for_each(|position| _ = miss(&mut state, &index, position));
        assert_eq!(miss(&mut state, &index, 113).0, 129..161);
        // Two of sixteen, and of 32.
        assert_eq!(miss(&mut state, &index, 120), (0..0, 0));
        assert_eq!(miss(&mut state, &index, 130), (161..177, 1));
        assert_eq!(miss(&mut state, &index, 140), (0..0, 0));
        assert_eq!(miss(&mut state, &index, 165), (177..185, 1));
        (166..177).for_each(|position| _ = miss(&mut state, &index, position));
        assert_eq!(miss(&mut state, &index, 177), (185..201, 1));
    }

    #[test]
    fn random_misses_ask_for_nothing_and_give_old_sequences_up() {
        let (index, mut state) = (index(&[10; 4000]), State::default());
        miss(&mut state, &index, 100);
        assert_eq!(miss(&mut state, &index, 101).0, 101..105);
        for position in [2000, 1000, 3000] {
            assert_eq!(miss(&mut state, &index, position), (0..0, 0));
        }
        assert_eq!(miss(&mut state, &index, 102).0, 105..113, "a few sequences are followed side by side");
        assert_eq!(miss(&mut state, &index, 102), (0..0, 0), "twice the same asks for nothing");
        for position in [500, 1500, 2500] {
            assert_eq!(miss(&mut state, &index, position), (0..0, 0));
        }
        assert_eq!(miss(&mut state, &index, 3500), (0..0, 2));
    }
}
