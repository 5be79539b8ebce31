//! The boot profile, fetched ahead of need in the order in which the last boots needed it.
//!
//! What arrives is verified and, within a budget of memory, put where programs find it without asking: small objects into a
//! layer of their own ([`crate::ahead::memory_layer`]), parts of large ones into EROFS' page cache ([`crate::ahead::kernel`]).
//! Nobody would know then what was of use, so the host has a sample of it watched, which waits
//! here until a program asks for it. Requests are few and small enough that a read that a program waits for is never far behind them. After the
//! boot what nobody asked for is dropped.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{SendError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::frame::MAX_BATCH;
use lazyroot_proto::reads::{Extent, Hint, Origin};

use crate::ahead::segments::{MAX_BLOCKS, Owner};
use crate::ahead::stores::Stores;
use crate::content::object::SMALL;
use crate::link::{ObjectRange, Ticket};
use crate::threads;

/// How long what was fetched ahead waits for a program: as long as the host takes a boot to last.
const BOOT: Duration = Duration::from_secs(60);

/// Bytes asked for at a time; there are two such lists under way. A read that a program waits for comes after them, which
/// costs it 10 ms on a link that carries 50 MiB/s.
const LIST_BYTES: u64 = 256 << 10;

/// Fetches the image's boot profile in a thread of its own. Ranges that are here, and that the kernel may read ahead, go to
/// `to_kernel` ([`crate::ahead::kernel`]).
///
/// # Errors
/// If the system has no thread for it.
pub fn start(stores: Arc<Stores>, to_kernel: Sender<Vec<ObjectRange>>) -> std::io::Result<()> {
    threads::start("prefetch", move || {
        let deadline = Instant::now() + BOOT;
        // A profile that cannot be had is none.
        let profile = stores.content.link().profile().unwrap_or_default();
        let replay = Replay { stores, to_kernel, deadline };
        replay.run(&profile);
        thread::sleep(deadline.saturating_duration_since(Instant::now()));
        replay.stores.clear();
    })?;
    Ok(())
}

/// The profile, being fetched.
struct Replay {
    stores: Arc<Stores>,
    /// Where ranges go that need not stay.
    to_kernel: Sender<Vec<ObjectRange>>,
    deadline: Instant,
}

/// What is asked for together.
#[derive(Default)]
struct List {
    bytes: u64,
    /// Small objects, by position, and whether they are watched.
    small: Vec<(u32, bool)>,
    /// Ranges of large ones, and whether they stay until a program asks for them.
    ranges: Vec<(ObjectRange, bool)>,
}

/// A list that was asked for.
struct ListInFlight {
    small: Vec<(u32, bool)>,
    /// As in [`List`].
    ranges: Vec<(ObjectRange, bool, Ticket)>,
}

impl Replay {
    fn run(&self, profile: &[Hint]) {
        let mut in_flight = VecDeque::new();
        for list in self.lists(profile) {
            if !self.stores.budget.wait_for(list.bytes as usize, self.deadline) {
                break;
            }
            in_flight.push_back(self.request(list));
            if in_flight.len() == 2 {
                in_flight.drain(..1).for_each(|list| self.receive(list));
            }
        }
        in_flight.into_iter().for_each(|list| self.receive(list));
    }

    /// The profile in lists, those parts of it that make sense.
    fn lists(&self, profile: &[Hint]) -> Vec<List> {
        let index = self.stores.content.index();
        let mut lists = vec![List::default()];
        let longest = longest(profile);
        for hint in profile {
            let Some((_, size)) = index.get(hint.extent.position) else { continue };
            let small = size <= SMALL;
            // Small objects travel whole.
            let extent = if small { Extent::around(hint.extent.position, 0, size) } else { Some(hint.extent) };
            let extent = extent.filter(|extent| small || extent.blocks <= MAX_BLOCKS);
            let Some(range) = extent.and_then(|extent| ObjectRange::new(index, extent)) else { continue };
            let last = lists.last_mut().expect("there is always one");
            let full =
                last.bytes + u64::from(range.len) > LIST_BYTES || last.small.len() + last.ranges.len() == MAX_BATCH;
            if full {
                lists.push(List::default());
            }
            let list = lists.last_mut().expect("there is always one");
            list.bytes += u64::from(range.len);
            if small {
                list.small.push((range.extent.position, hint.watched));
            } else {
                list.ranges.push((range, hint.watched || is_sequential(hint.extent, &longest)));
            }
        }
        lists
    }

    fn request(&self, list: List) -> ListInFlight {
        let Stores { content, small, large, page_cache, .. } = &*self.stores;
        // What the kernel knows a program has read.
        let objects: Vec<_> = list.small.into_iter().filter(|(position, _)| !page_cache.knows(*position)).collect();
        small.request(objects.iter().map(|(position, _)| *position), Origin::Profile);
        let insert = |(range, stays): (ObjectRange, bool)| {
            let absent = large.insert_absent(range.extent, Owner::Profile);
            absent.into_iter().map(move |range| (range, stays))
        };
        let (ranges, stay): (Vec<_>, Vec<_>) = list.ranges.into_iter().flat_map(insert).unzip();
        let tickets = content.link().request_ranges(&ranges);
        let ranges = ranges.into_iter().zip(stay).zip(tickets);
        let ranges = ranges.map(|((range, stays), ticket)| (range, stays, ticket)).collect();
        ListInFlight { small: objects, ranges }
    }

    fn receive(&self, list: ListInFlight) {
        let Stores { content, small, large, memory_layer, .. } = &*self.stores;
        let watched: HashSet<_> =
            list.small.iter().filter(|(_, watched)| *watched).map(|(position, _)| *position).collect();
        let positions = list.small.into_iter().map(|(position, _)| position);
        small.receive(positions, Origin::Profile, |position, bytes, stopwatch| {
            let id = content.index().get(position).map(|(id, _)| id);
            let put = !watched.contains(&position) && id.is_some_and(|id| memory_layer.put(&id, bytes).is_ok());
            if put {
                small.insert_profile_in_memory_layer(position, bytes.len(), stopwatch);
            } else {
                small.pin(position, bytes.len());
            }
        });
        let mut for_kernel = Vec::new();
        for (range, stays, ticket) in list.ranges {
            let Some(bytes) = large.keep_profile(&range, content.link().redeem(ticket)) else { continue };
            if stays {
                content.recorder().watch_profile(bytes as u64);
            } else {
                for_kernel.push(range);
            }
        }
        // All at once: to wake a thread for each would cost more than it waits.
        if let Err(SendError(ranges)) = self.to_kernel.send(for_kernel) {
            ranges.iter().for_each(|range| content.recorder().watch_profile(range.len.into()));
        }
    }
}

/// The parts of a profile that are as long as one may be, by position and first block.
type Longest = HashSet<(u32, u64)>;

fn longest(profile: &[Hint]) -> Longest {
    let longest = profile.iter().map(|hint| hint.extent).filter(|extent| extent.blocks == MAX_BLOCKS);
    longest.map(|extent| (extent.position, extent.block.into())).collect()
}

/// Whether this part of a profile was read as one reads a file from its beginning to its end. The kernel reads ahead for
/// such a program by itself, in larger pages than it does for [`crate::ahead::kernel`], which are read faster.
fn is_sequential(extent: Extent, longest: &Longest) -> bool {
    let (block, blocks) = (u64::from(extent.block), u64::from(MAX_BLOCKS));
    let has = |block: u64| longest.contains(&(extent.position, block));
    has(block) && (has(block + blocks) || block.checked_sub(blocks).is_some_and(has))
}
