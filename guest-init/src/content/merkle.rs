//! Merkle trees of large objects: just the nodes that prove what is read.
//!
//! A level of a tree is asked for in windows. One that is small enough is all of its level, and is checked against the
//! object's id; any other against the window of the level above that it hangs from, which is had in the same way. So the
//! first read of an object of any size brings two or three windows, and a gigabyte's leaves are never here at once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use lazyroot_proto::reads::Origin;
use lazyroot_proto::{ObjectId, verity};

use crate::content::cache::{Cache, Fetched};
use crate::link::{Link, Ticket};
use crate::objects::ReadError;

/// Bytes of a level that are asked for at a time: under SHA-256, the leaves of 8 MiB. A read at random brings no more than
/// that along, and reads in order find the next window here, as it is asked for half a window ahead.
const WINDOW: u64 = 64 << 10;

/// Reads of more bytes are taken for reads in order: the kernel's own have grown to that only there.
const SHORT: u64 = 64 << 10;

/// Windows on their way, or here and not checked, at a time: 4 MiB. Some are never needed, as nobody reads on.
const MOST_EXPECTED: usize = 64;

/// Memory for nodes, in bytes: those of 1 GiB of large files being read at a time.
const BUDGET: usize = 8 << 20;

/// See the module.
pub struct Trees {
    verified: Cache<Window>,
    /// Windows on their way that nobody waits for yet.
    tickets: Mutex<BTreeMap<Window, Ticket>>,
}

/// A large object.
#[derive(Clone, Copy, Debug)]
pub struct Large {
    /// Where it is in the index.
    pub position: u32,
    /// Which it is.
    pub id: ObjectId,
    /// In bytes.
    pub size: u64,
}

/// A part of a level of an object's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Window {
    position: u32,
    level: u8,
    number: u64,
}

impl Large {
    /// The window of leaves that proves the block at byte `offset`.
    fn leaf_window(&self, offset: u64) -> Window {
        Window { position: self.position, level: 0, number: offset / self.covered() }
    }

    /// Bytes of what is below a window that it has the hashes of.
    fn covered(&self) -> u64 {
        WINDOW / self.id.algorithm().digest_len() as u64 * verity::BLOCK as u64
    }

    /// The bytes of its level that a window has; empty behind the end.
    fn bytes(&self, window: Window) -> Range<u64> {
        let len = verity::level_len(self.id.algorithm(), self.size, window.level);
        (window.number * WINDOW).min(len)..((window.number + 1) * WINDOW).min(len)
    }

    /// The window that proves this one; `None` if that is the object's id.
    fn above(&self, window: Window) -> Option<Window> {
        let level = verity::level_len(self.id.algorithm(), self.size, window.level);
        let number = window.number * WINDOW / self.covered();
        (level > WINDOW).then_some(Window { level: window.level + 1, number, ..window })
    }
}

impl Trees {
    /// Nothing of any tree.
    pub fn new() -> Self {
        Self { verified: Cache::new(BUDGET), tickets: Mutex::default() }
    }

    /// Asks for what proves this range, in bytes, of the object and is not here.
    pub fn expect(&self, link: &Link, object: &Large, range: Range<u64>) {
        let ahead = if range.end - range.start > SHORT { object.covered() / 2 } else { 0 };
        let end = (range.end + ahead).min(object.size);
        for number in range.start / object.covered()..end.div_ceil(object.covered()) {
            self.expect_path(link, object, Window { position: object.position, level: 0, number });
        }
    }

    /// Asks for the window and those that prove it, as far as they are not here. Whoever has one has those above it.
    fn expect_path(&self, link: &Link, object: &Large, window: Window) {
        let path = std::iter::successors(Some(window), |window| object.above(*window));
        for window in path.take_while(|window| !self.verified.has(*window)) {
            // Looked at under the lock: whoever fetches a window takes the ticket once the cache knows of it.
            let mut tickets = self.tickets();
            if let (Entry::Vacant(place), false) = (tickets.entry(window), self.verified.has(window)) {
                place.insert(ask(link, object, window));
            }
            if tickets.len() > MOST_EXPECTED {
                tickets.pop_first().into_iter().for_each(|(_, ticket)| link.forget(ticket));
            }
        }
    }

    /// What was asked for of the object at `position` is of no use any more.
    pub fn give_up(&self, link: &Link, position: u32) {
        let first = |position| Window { position, level: 0, number: 0 };
        let given_up = {
            let mut tickets = self.tickets();
            let mut tail = tickets.split_off(&first(position));
            if let Some(next) = position.checked_add(1) {
                tickets.append(&mut tail.split_off(&first(next)));
            }
            tail
        };
        given_up.into_values().for_each(|ticket| link.forget(ticket));
    }

    /// Whether `data`, whole blocks of the object from byte `offset` on or all that follows, is what the object has there.
    ///
    /// # Errors
    /// If the nodes that say so cannot be had.
    pub fn prove(&self, link: &Link, object: &Large, offset: u64, mut data: &[u8]) -> Result<bool, ReadError> {
        let mut offset = offset;
        while !data.is_empty() {
            let window = object.leaf_window(offset);
            let start = window.number * object.covered();
            let (here, rest) = data.split_at(data.len().min((start + object.covered() - offset) as usize));
            let leaves = self.nodes(link, object, window)?;
            if !verity::range_matches(object.id.algorithm(), &leaves, offset - start, here) {
                return Ok(false);
            }
            offset += here.len() as u64;
            data = rest;
        }
        Ok(true)
    }

    fn nodes(&self, link: &Link, object: &Large, window: Window) -> Fetched {
        self.verified.get_or_fetch(window, Origin::Host, || {
            let ticket = self.tickets().remove(&window).unwrap_or_else(|| ask(link, object, window));
            if let Some(above) = object.above(window) {
                // On its way meanwhile.
                self.expect_path(link, object, above);
            }
            let nodes = link.redeem(ticket).map_err(|error| ReadError::Link { id: object.id, error })?;
            let algorithm = object.id.algorithm();
            let right = match object.above(window) {
                None => verity::digest_of_level(algorithm, &nodes, window.level, object.size) == Some(object.id),
                Some(above) => {
                    let start = object.bytes(window).start - above.number * object.covered();
                    verity::range_matches(algorithm, &self.nodes(link, object, above)?, start, &nodes)
                }
            };
            if right { Ok(nodes) } else { Err(ReadError::Corrupt(object.id)) }
        })
    }

    fn tickets(&self) -> MutexGuard<'_, BTreeMap<Window, Ticket>> {
        self.tickets.lock().expect("no panic under the lock")
    }
}

fn ask(link: &Link, object: &Large, window: Window) -> Ticket {
    let bytes = object.bytes(window);
    link.nodes_ahead(object.id, window.level, bytes.start, (bytes.end - bytes.start) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::Algorithm;

    #[test]
    fn windows_hang_together_up_to_the_id() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let id = verity::digest(algorithm, b"");
            for size in [300 << 10, 8 << 20, (8 << 20) + 1, 128 << 20, 10 << 30, 3 << 40] {
                let object = Large { position: 7, id, size };
                let last = object.leaf_window(size - 1);
                assert_eq!(object.bytes(last).end, verity::leaves_len(algorithm, size));
                assert_eq!(object.bytes(Window { number: last.number + 1, ..last }).count(), 0);
                let path: Vec<_> = std::iter::successors(Some(last), |window| object.above(*window)).collect();
                for pair in path.windows(2) {
                    let (below, above) = (object.bytes(pair[0]), object.bytes(pair[1]));
                    let hashes = below.end.div_ceil(verity::BLOCK as u64) * algorithm.digest_len() as u64;
                    assert_eq!(hashes, above.end, "the last ends where the last below does");
                }
                let top = *path.last().unwrap();
                assert_eq!(object.bytes(top), 0..verity::level_len(algorithm, size, top.level), "all of its level");
            }
        }
    }
}
