//! Merkle trees of large objects: just the nodes that prove what is read.
//!
//! A level of a tree is asked for in windows. One that is small enough is all of its level, and is checked against the
//! object's id; any other against the window of the level above that it hangs from, which is had in the same way. So the
//! first read of an object of any size brings two or three windows, and a gigabyte's leaves are never here at once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use lazyroot_proto::reads::Origin;
use lazyroot_proto::verified::{Proof, Unverified};
use lazyroot_proto::verity;

use crate::content::cache::Cache;
use crate::content::error::{ReadError, ReadResult};
use crate::content::object::LargeObject;
use crate::link::{Link, Ticket};

/// Bytes of a level that are asked for at a time: under SHA-256, the leaves of 8 MiB. A read at random brings no more than
/// that along, and reads in order find the next window here, as it is asked for half a window ahead.
const WINDOW: u64 = 64 << 10;

/// Reads of more bytes are taken for reads in order: the kernel's own have grown to that only there.
const SHORT: u64 = 64 << 10;

/// Windows on their way, or here and not checked, at a time: 4 MiB. Some are never needed, as nobody reads on.
const MAX_TICKETS: usize = 64;

/// Memory for nodes, in bytes: those of 1 GiB of large files being read at a time.
const BUDGET: usize = 8 << 20;

/// See the module.
pub struct MerkleTrees {
    link: Arc<Link>,
    verified: Cache<Window>,
    /// Windows on their way that nobody waits for yet.
    tickets: Mutex<BTreeMap<Window, Ticket>>,
}

/// A part of a level of an object's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Window {
    position: u32,
    level: u8,
    number: u64,
}

impl LargeObject {
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

impl MerkleTrees {
    /// Nothing of any tree; nodes are fetched through `link`.
    pub fn new(link: Arc<Link>) -> Self {
        Self { link, verified: Cache::new(BUDGET), tickets: Mutex::default() }
    }

    /// Asks for what proves this range, in bytes, of the object and is not here.
    pub fn request(&self, object: &LargeObject, range: Range<u64>) {
        let ahead = if range.end - range.start > SHORT { object.covered() / 2 } else { 0 };
        let end = (range.end + ahead).min(object.size);
        for number in range.start / object.covered()..end.div_ceil(object.covered()) {
            self.request_path(object, Window { position: object.position, level: 0, number });
        }
    }

    /// Asks for the window and those that prove it, as far as they are not here. If one is here, so are those above it.
    fn request_path(&self, object: &LargeObject, window: Window) {
        let path = std::iter::successors(Some(window), |window| object.above(*window));
        for window in path.take_while(|window| !self.verified.contains(*window)) {
            // Looked at under the lock: a thread that fetches a window takes the ticket once the cache knows of it.
            let mut tickets = self.tickets();
            if let (Entry::Vacant(place), false) = (tickets.entry(window), self.verified.contains(window)) {
                place.insert(self.request_window(object, window));
            }
            if tickets.len() > MAX_TICKETS {
                tickets.pop_first().into_iter().for_each(|(_, ticket)| self.link.forget(ticket));
            }
        }
    }

    fn request_window(&self, object: &LargeObject, window: Window) -> Ticket {
        let bytes = object.bytes(window);
        self.link.request_nodes(object.id, window.level, bytes.start, (bytes.end - bytes.start) as u32)
    }

    /// Gives up what is on its way of the tree of the object at `position`.
    pub fn forget(&self, position: u32) {
        let first = |position| Window { position, level: 0, number: 0 };
        let forgotten = {
            let mut tickets = self.tickets();
            let mut tail = tickets.split_off(&first(position));
            if let Some(next) = position.checked_add(1) {
                tickets.append(&mut tail.split_off(&first(next)));
            }
            tail
        };
        forgotten.into_values().for_each(|ticket| self.link.forget(ticket));
    }

    /// Checks `data`, whole blocks of the object from byte `offset` on or all that follows.
    ///
    /// # Errors
    /// If the object has other bytes there, or the nodes that say so cannot be had.
    pub fn verify(&self, object: &LargeObject, offset: u64, data: Unverified) -> ReadResult {
        let proof_of = |at| -> Result<Proof, ReadError> {
            let window = object.leaf_window(at);
            let start = window.number * object.covered();
            Ok(Proof { nodes: self.nodes(object, window)?, covers: start..start + object.covered() })
        };
        data.verify_range_by(object.id.algorithm(), offset, proof_of)?.map_err(|_| ReadError::Corrupt(object.id))
    }

    fn nodes(&self, object: &LargeObject, window: Window) -> ReadResult {
        self.verified.get_or_fetch(window, Origin::Host, || {
            let ticket = self.tickets().remove(&window).unwrap_or_else(|| self.request_window(object, window));
            if let Some(above) = object.above(window) {
                // On its way meanwhile.
                self.request_path(object, above);
            }
            let nodes = self.link.redeem(ticket).map_err(|error| ReadError::Link { id: object.id, error })?;
            let verified = match object.above(window) {
                None => nodes.verify_level(&object.id, object.size, window.level),
                Some(above) => {
                    let start = object.bytes(window).start - above.number * object.covered();
                    nodes.verify_range(object.id.algorithm(), start, &self.nodes(object, above)?)
                }
            };
            verified.map_err(|_| ReadError::Corrupt(object.id))
        })
    }

    fn tickets(&self) -> MutexGuard<'_, BTreeMap<Window, Ticket>> {
        self.tickets.lock().expect("no panic under the lock")
    }
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
                let object = LargeObject { position: 7, id, size };
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
