//! The boot profile, fetched ahead of need in the order in which the last boots needed it.
//!
//! What arrives is verified and, within a budget of memory, put where programs find it without asking: small objects into a
//! layer of their own ([`crate::ahead::ready_layer`]), parts of large ones into EROFS' page cache ([`crate::ahead::kernel`]).
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

use crate::ahead::page_cache::Pages;
use crate::ahead::pieces::MAX_BLOCKS;
use crate::ahead::ready_layer::Ready;
use crate::link::{Ticket, Wanted};
use crate::objects::{Objects, SMALL};

/// How long what was fetched ahead waits for a program: as long as the host takes a boot to last.
const BOOT: Duration = Duration::from_secs(60);

/// Bytes asked for at a time; there are two such lists under way. A read that a program waits for comes after them, which
/// costs it 10 ms on a link that carries 50 MiB/s.
const LIST_BYTES: u64 = 256 << 10;

/// Fetches the image's boot profile in a thread of its own. Pieces that have `arrived` are for [`crate::ahead::kernel`].
///
/// # Errors
/// If the system has no thread for it.
pub fn start(
    objects: Arc<Objects>,
    pages: Arc<Pages>,
    ready: Arc<Ready>,
    arrived: Sender<Vec<Wanted>>,
) -> std::io::Result<()> {
    thread::Builder::new().name("prefetch".into()).spawn(move || {
        let deadline = Instant::now() + BOOT;
        // A profile that cannot be had is none.
        let profile = objects.link().profile().unwrap_or_default();
        let prefetch = Prefetch { objects, pages, ready, arrived, deadline };
        prefetch.replay(&profile);
        thread::sleep(deadline.saturating_duration_since(Instant::now()));
        prefetch.objects.drop_ahead();
        prefetch.ready.clear();
    })?;
    Ok(())
}

struct Prefetch {
    objects: Arc<Objects>,
    pages: Arc<Pages>,
    ready: Arc<Ready>,
    /// Where pieces go that need not stay.
    arrived: Sender<Vec<Wanted>>,
    deadline: Instant,
}

/// What is asked for together.
#[derive(Default)]
struct List {
    bytes: u64,
    /// Small objects, by position, and whether they are watched.
    small: Vec<(u32, bool)>,
    /// Of large ones, and whether they stay until a program asks for them.
    pieces: Vec<(Wanted, bool)>,
}

/// A list that was asked for.
struct UnderWay {
    small: Vec<(u32, bool)>,
    /// As in [`List`].
    pieces: Vec<(Wanted, bool, Ticket)>,
}

impl Prefetch {
    fn replay(&self, profile: &[Hint]) {
        let mut under_way = VecDeque::new();
        for list in self.lists(profile) {
            if !self.objects.budget().wait_for(list.bytes as usize, self.deadline) {
                break;
            }
            under_way.push_back(self.ask(list));
            if under_way.len() == 2 {
                under_way.drain(..1).for_each(|list| self.receive(list));
            }
        }
        under_way.into_iter().for_each(|list| self.receive(list));
    }

    /// The profile in lists, those parts of it that make sense.
    fn lists(&self, profile: &[Hint]) -> Vec<List> {
        let index = self.objects.index();
        let mut lists = vec![List::default()];
        let longest = longest(profile);
        for hint in profile {
            let Some((_, size)) = index.get(hint.extent.position) else { continue };
            let small = size <= SMALL;
            // Small objects travel whole.
            let extent = if small { Extent::around(hint.extent.position, 0, size) } else { Some(hint.extent) };
            let wanted = extent.filter(|extent| small || extent.blocks <= MAX_BLOCKS);
            let Some(wanted) = wanted.and_then(|extent| Wanted::new(index, extent)) else { continue };
            let last = lists.last_mut().expect("there is always one");
            let full =
                last.bytes + u64::from(wanted.len) > LIST_BYTES || last.small.len() + last.pieces.len() == MAX_BATCH;
            if full {
                lists.push(List::default());
            }
            let list = lists.last_mut().expect("there is always one");
            list.bytes += u64::from(wanted.len);
            if small {
                list.small.push((wanted.extent.position, hint.watched));
            } else {
                list.pieces.push((wanted, hint.watched || is_sequential(hint.extent, &longest)));
            }
        }
        lists
    }

    fn ask(&self, list: List) -> UnderWay {
        // What the kernel knows a program has read.
        let small: Vec<_> = list.small.into_iter().filter(|(position, _)| !self.pages.knows(*position)).collect();
        self.objects.expect_small(small.iter().map(|(position, _)| *position), Origin::Profile);
        let expect = |(wanted, stays): (Wanted, bool)| {
            let absent = self.objects.expect_piece(wanted.extent, Origin::Profile);
            absent.into_iter().map(move |wanted| (wanted, stays))
        };
        let (pieces, stay): (Vec<_>, Vec<_>) = list.pieces.into_iter().flat_map(expect).unzip();
        let tickets = self.objects.link().read_ahead(&pieces);
        let pieces = pieces.into_iter().zip(stay).zip(tickets);
        UnderWay { small, pieces: pieces.map(|((wanted, stays), ticket)| (wanted, stays, ticket)).collect() }
    }

    fn receive(&self, list: UnderWay) {
        let watched: HashSet<_> =
            list.small.iter().filter(|(_, watched)| *watched).map(|(position, _)| *position).collect();
        let positions = list.small.into_iter().map(|(position, _)| position);
        self.objects.receive_small(positions, Origin::Profile, |position, content, stopwatch| {
            let id = self.objects.index().get(position).map(|(id, _)| id);
            let ready = !watched.contains(&position) && id.is_some_and(|id| self.ready.put(&id, content).is_ok());
            if ready {
                self.objects.made_ready(position, content.len(), stopwatch);
            } else {
                self.objects.hold_small(position, content.len());
            }
        });
        let mut moving = Vec::new();
        for (wanted, stays, ticket) in list.pieces {
            let came = self.objects.keep_piece(&wanted, self.objects.link().redeem(ticket));
            let Some(bytes) = came else { continue };
            if stays {
                self.objects.watch(bytes as u64);
            } else {
                moving.push(wanted);
            }
        }
        // All at once: to wake a thread for each would cost more than it waits.
        if let Err(SendError(pieces)) = self.arrived.send(moving) {
            pieces.iter().for_each(|piece| self.objects.watch(piece.len.into()));
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
