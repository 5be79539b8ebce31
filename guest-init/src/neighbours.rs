//! Neighbours: small objects that are read one after the other are asked for many at a time.
//!
//! Positions in the object index follow the tree, so a program that walks it (tar, grep, a copy) misses on one
//! position after the next, and each miss alone costs a round trip. Once two misses follow each other, the objects
//! after them are asked for along; the window doubles while they are used. A miss elsewhere gives up what is not
//! used and starts anew with nothing: who reads at random pays for one guess at most.

use std::collections::BTreeMap;
use std::sync::Mutex;

use lazyroot_proto::ObjectId;
use lazyroot_proto::index::ObjectIndex;

use crate::link::{Link, LinkError, Ticket};

/// Objects in the first batch of a sequence, and in the largest: enough that the round trips no longer show, few
/// enough that one batch is well under a second even where a megabyte takes 20 ms.
const FIRST_WINDOW: u32 = 4;
const MAX_WINDOW: u32 = 64;

/// Bytes of one batch at most; there are two of them at a time.
const MAX_BATCH_BYTES: u64 = 1 << 20;

/// How far apart two misses may be and still follow each other: between them lie files that are read in pieces, or
/// that the program has no use for.
const GAP: u32 = 8;

/// What was asked for ahead.
#[derive(Default)]
pub struct Neighbours(Mutex<State>);

#[derive(Default)]
struct State {
    tickets: BTreeMap<u32, Ticket>,
    /// The position of the last miss.
    last: Option<u32>,
    /// Objects to ask for at a time; 0 outside of a sequence.
    window: u32,
    /// The first position that was not asked for in this sequence.
    next: u32,
}

impl Neighbours {
    /// The whole object at `position`, of at most `longest` bytes, and along with it, perhaps, some that follow.
    /// Not verified.
    pub fn read(&self, link: &Link, index: &ObjectIndex, position: u32, longest: u64) -> Result<Vec<u8>, LinkError> {
        let ticket = {
            let mut state = self.0.lock().expect("no panic under the lock");
            state.miss(position).into_iter().for_each(|ticket| link.forget(ticket));
            if state.wants_more() {
                state.ask(link, index, longest);
            }
            state.tickets.remove(&position)
        };
        match (ticket, index.get(position)) {
            (Some(ticket), _) => link.redeem(ticket),
            (None, Some((id, size))) => link.read(id, 0, size as u32),
            (None, None) => unreachable!("the caller found the object in the index"),
        }
    }
}

impl State {
    /// Takes a miss down; returns the tickets that are of no use any more.
    fn miss(&mut self, position: u32) -> Vec<Ticket> {
        let follows = self.last.is_some_and(|last| (last..last.saturating_add(GAP)).contains(&position));
        self.last = Some(position);
        let asked_ahead = self.tickets.contains_key(&position);
        let useful = if follows || asked_ahead { self.tickets.split_off(&position) } else { BTreeMap::new() };
        let useless = std::mem::replace(&mut self.tickets, useful).into_values().collect();
        match (follows || asked_ahead, asked_ahead) {
            (false, _) => self.window = 0,
            (true, true) => (),
            (true, false) => {
                self.window = (2 * self.window).clamp(FIRST_WINDOW, MAX_WINDOW);
                self.next = position;
            }
        }
        useless
    }

    /// Half a window before the last one runs out, so that the program never waits for a whole round trip.
    fn wants_more(&self) -> bool {
        self.window > 0 && self.tickets.len() < self.window as usize / 2
    }

    fn ask(&mut self, link: &Link, index: &ObjectIndex, longest: u64) {
        let (first, objects) = batch(index, self.next, self.window, longest);
        self.next = first + objects.len() as u32;
        if !objects.is_empty() {
            self.tickets.extend((first..).zip(link.read_ahead(first, &objects)));
            self.window = (2 * self.window).min(MAX_WINDOW);
        }
    }
}

/// The next objects from `from` on that can be asked for together: consecutive, each of 1 to `longest` bytes.
fn batch(index: &ObjectIndex, from: u32, window: u32, longest: u64) -> (u32, Vec<(ObjectId, u32)>) {
    let fits = |size: u64| (1..=longest).contains(&size);
    let rest = index.entries().get(from as usize..).unwrap_or_default();
    let skipped = rest.iter().take(GAP as usize).take_while(|(_, size)| !fits(*size)).count();
    let mut bytes = 0;
    let objects = rest[skipped..].iter().take(window as usize).take_while(|(_, size)| {
        bytes += size;
        fits(*size) && bytes <= MAX_BATCH_BYTES
    });
    (from + skipped as u32, objects.map(|(id, size)| (*id, *size as u32)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::{Algorithm, verity};

    fn index(sizes: &[u64]) -> ObjectIndex {
        let entry = |(number, size): (usize, &u64)| (verity::digest(Algorithm::Sha256, &number.to_le_bytes()), *size);
        ObjectIndex::new(Algorithm::Sha256, sizes.iter().enumerate().map(entry).collect()).unwrap()
    }

    fn positions(index: &ObjectIndex, from: u32, window: u32) -> (u32, usize) {
        let (first, objects) = batch(index, from, window, 1000);
        (first, objects.len())
    }

    #[test]
    fn a_batch_ends_before_a_large_object_and_the_next_begins_behind_it() {
        let index = index(&[10, 10, 5000, 10, 10, 10]);
        assert_eq!(positions(&index, 0, 8), (0, 2));
        assert_eq!(positions(&index, 2, 8), (3, 3));
        assert_eq!(positions(&index, 3, 2), (3, 2));
        assert_eq!(positions(&index, 6, 8), (6, 0));
        assert_eq!(positions(&index, 99, 8), (99, 0));
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let index = index(&[1000; 2000]);
        let (_, objects) = batch(&index, 0, 2000, 1000);
        assert_eq!(objects.len() as u64, MAX_BATCH_BYTES / 1000);
    }

    #[test]
    fn a_window_opens_with_the_second_of_a_sequence_and_closes_with_a_jump() {
        let mut state = State::default();
        state.miss(7);
        assert!(!state.wants_more(), "one miss is no sequence");
        state.miss(8);
        assert!(state.wants_more() && state.window == FIRST_WINDOW && state.next == 8);
        state.miss(5000);
        assert!(!state.wants_more());
        state.miss(4999);
        assert!(!state.wants_more(), "backwards is no sequence");
    }
}
