//! The files of a trace, and which of them get a row of their own.

use std::collections::HashMap;

use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::{Extent, Origin, Read};

use crate::store::Trace;

/// Rows that are drawn; of more files those that programs waited for longest are, and the others share one row. At 15
/// pixels each a few screens: what a person still looks through.
const MAX_ROWS: usize = 300;

/// One file's reads.
#[derive(Clone, Debug)]
pub struct FileRow {
    /// Its object's position in the index; `None` for many files together.
    pub position: Option<u32>,
    /// Its name.
    pub name: String,
    /// Its reads, the first one first.
    pub reads: Vec<Read>,
    /// How long programs waited for them together, in microseconds.
    pub waited: u64,
    /// Bytes of those reads.
    pub bytes: u64,
}

impl FileRow {
    /// When it was first read, in microseconds since the guest's kernel started.
    pub fn first(&self) -> u64 {
        self.reads.first().map_or(0, |read| read.at)
    }

    /// Where most of its bytes came from.
    pub fn origin(&self) -> Origin {
        let blocks = |origin: Origin| -> u64 {
            let of = self.reads.iter().filter(|read| read.origin == origin);
            of.map(|read| u64::from(read.extent.blocks)).sum()
        };
        Origin::ALL.into_iter().rev().max_by_key(|origin| blocks(*origin)).expect("there are some")
    }
}

/// The files of a trace that were read within `until` microseconds of the first read, in the order of first reading.
pub fn file_rows(trace: &Trace, index: &ObjectIndex, names: &dyn Fn(u32) -> String, until: u64) -> Vec<FileRow> {
    let mut reads: Vec<&Read> = trace.reads.iter().collect();
    reads.sort_by_key(|read| read.at);
    let Some(start) = reads.first().map(|read| read.at) else { return Vec::new() };
    let mut rows: Vec<FileRow> = Vec::new();
    let mut known: HashMap<u32, usize> = HashMap::new();
    for read in reads.into_iter().take_while(|read| read.at - start <= until) {
        let position = read.extent.position;
        let row = *known.entry(position).or_insert_with(|| {
            let name = names(position);
            rows.push(FileRow { position: Some(position), name, reads: Vec::new(), waited: 0, bytes: 0 });
            rows.len() - 1
        });
        let row = &mut rows[row];
        row.reads.push(*read);
        if read.origin != Origin::Preloaded {
            row.waited += u64::from(read.waited);
        }
        row.bytes += bytes_of(&read.extent, index);
    }
    rows
}

pub(super) fn bytes_of(extent: &Extent, index: &ObjectIndex) -> u64 {
    index.get(extent.position).and_then(|(_, size)| extent.bytes(size)).map_or(0, |(_, len)| len)
}

/// Keeps the rows that were waited for longest, in their order; the others become one, at the end.
pub(super) fn fold(rows: Vec<FileRow>) -> Vec<FileRow> {
    let Some(too_many) = rows.len().checked_sub(MAX_ROWS).filter(|more| *more > 0) else { return rows };
    let mut by_wait: Vec<usize> = (0..rows.len()).collect();
    by_wait.sort_by_key(|&row| rows[row].waited);
    let folded: std::collections::HashSet<usize> = by_wait.into_iter().take(too_many).collect();
    let name = format!("{too_many} more files, read with less waiting");
    let mut others = FileRow { position: None, name, reads: Vec::new(), waited: 0, bytes: 0 };
    let mut kept = Vec::new();
    for (number, row) in rows.into_iter().enumerate() {
        if folded.contains(&number) {
            others.waited += row.waited;
            others.bytes += row.bytes;
            others.reads.extend(row.reads);
        } else {
            kept.push(row);
        }
    }
    others.reads.sort_by_key(|read| read.at);
    kept.push(others);
    kept
}
