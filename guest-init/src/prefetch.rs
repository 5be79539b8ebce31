//! The boot profile, fetched ahead of need in the order in which the last boots needed it.
//!
//! What arrives is verified and waits here, in memory of a budget, until a program asks for it; so it is known what was
//! of use. Requests are few and small enough that a read that a program waits for is never far behind them. After the
//! boot what nobody asked for is dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lazyroot_proto::frame::MAX_BATCH;
use lazyroot_proto::reads::{Extent, Origin};

use crate::link::{Ticket, Wanted};
use crate::objects::{Objects, SMALL};
use crate::pages::Pages;
use crate::pieces::MAX_BLOCKS;

/// How long what was fetched ahead waits for a program: as long as the host takes a boot to last.
const BOOT: Duration = Duration::from_secs(60);

/// Bytes asked for at a time; there are two such lists under way. A read that a program waits for comes after them, which
/// costs it 10 ms on a link that carries 50 MiB/s.
const LIST_BYTES: u64 = 256 << 10;

/// Fetches the image's boot profile in a thread of its own.
///
/// # Errors
/// If the system has no thread for it.
pub fn start(objects: Arc<Objects>, pages: Arc<Pages>) -> std::io::Result<()> {
    thread::Builder::new().name("prefetch".into()).spawn(move || {
        let deadline = Instant::now() + BOOT;
        // A profile that cannot be had is none.
        let Ok(profile) = objects.link().profile() else { return };
        if profile.is_empty() {
            return;
        }
        replay(&objects, &pages, &profile, deadline);
        thread::sleep(deadline.saturating_duration_since(Instant::now()));
        objects.drop_ahead();
    })?;
    Ok(())
}

/// A list that was asked for.
#[derive(Default)]
struct List {
    small: Vec<u32>,
    pieces: Vec<(Wanted, Ticket)>,
}

fn replay(objects: &Objects, pages: &Pages, profile: &[Extent], deadline: Instant) {
    let mut under_way = VecDeque::new();
    for list in lists(objects, profile) {
        let bytes = list.iter().map(|wanted| wanted.len as usize).sum();
        if !objects.budget().wait_for(bytes, deadline) {
            break;
        }
        under_way.push_back(ask(objects, pages, list));
        if under_way.len() == 2 {
            under_way.drain(..1).for_each(|list| receive(objects, list));
        }
    }
    under_way.into_iter().for_each(|list| receive(objects, list));
}

/// The profile in lists, those parts of it that make sense.
fn lists(objects: &Objects, profile: &[Extent]) -> Vec<Vec<Wanted>> {
    let index = objects.index();
    let wanted = profile.iter().filter_map(|extent| {
        let (_, size) = index.get(extent.position)?;
        // Small objects travel whole.
        let extent = if size <= SMALL { Extent::around(extent.position, 0, size)? } else { *extent };
        Wanted::new(index, extent).filter(|wanted| size <= SMALL || wanted.extent.blocks <= MAX_BLOCKS)
    });
    let mut lists = vec![Vec::<Wanted>::new()];
    let mut bytes = 0;
    for wanted in wanted {
        bytes += u64::from(wanted.len);
        if bytes > LIST_BYTES || lists.last().is_some_and(|list| list.len() == MAX_BATCH) {
            lists.push(Vec::new());
            bytes = wanted.len.into();
        }
        lists.last_mut().expect("there is always one").push(wanted);
    }
    lists
}

fn ask(objects: &Objects, pages: &Pages, list: Vec<Wanted>) -> List {
    let is_small = |wanted: &Wanted| objects.index().get(wanted.extent.position).is_some_and(|(_, size)| size <= SMALL);
    let (small, pieces): (Vec<_>, Vec<_>) = list.into_iter().partition(is_small);
    // What the kernel knows it has read.
    let small: Vec<_> =
        small.iter().map(|wanted| wanted.extent.position).filter(|position| !pages.knows(*position)).collect();
    objects.expect_small(small.iter().copied(), Origin::Profile);
    let pieces = objects.expect_pieces(pieces);
    let tickets = objects.link().read_ahead(&pieces);
    List { small, pieces: pieces.into_iter().zip(tickets).collect() }
}

fn receive(objects: &Objects, list: List) {
    for position in list.small {
        if let Some(Ok(content)) = objects.receive_small(position, Origin::Profile) {
            objects.hold_small(position, content.len());
        }
    }
    for (wanted, ticket) in list.pieces {
        objects.keep_piece(&wanted, objects.link().redeem(ticket));
    }
}
