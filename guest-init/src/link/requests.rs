//! What can be asked of the host: metadata and parts of objects, none of them verified yet, and events that are told.

use lazyroot_proto::frame::{EventKind, MAX_BATCH, MAX_READ, Metadata, Request, kind};
use lazyroot_proto::reads::{Extent, Hint, decode_hints};
use lazyroot_proto::verified::Unverified;
use lazyroot_proto::{ObjectId, ObjectIndex};

use crate::link::calls::Ticket;
use crate::link::connection::Link;
use crate::link::error::LinkError;

/// Bytes of metadata asked for at a time: while one chunk is hashed and kept, the next one is on its way.
const CHUNK: u32 = 256 << 10;

/// A range of an object.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRange {
    /// The range, by position and blocks.
    pub extent: Extent,
    /// Which object that is.
    pub id: ObjectId,
    /// The range's first byte.
    pub offset: u64,
    /// In bytes, at most [`MAX_READ`].
    pub len: u32,
}

impl ObjectRange {
    /// The part of `extent` that lies in the object, of `index`, that it names; `None` if that is nothing or too much.
    pub fn new(index: &ObjectIndex, extent: Extent) -> Option<Self> {
        let (id, size) = index.get(extent.position)?;
        let (offset, len) = extent.bytes(size)?;
        let len = u32::try_from(len).ok().filter(|len| *len <= MAX_READ)?;
        Some(Self { extent, id, offset, len })
    }
}

impl Link {
    /// Hands the image's EROFS manifest to `take`, chunk by chunk and in order. Not verified.
    ///
    /// # Errors
    /// If a chunk does not arrive, or `take` fails.
    pub fn manifest<E: From<LinkError>>(&self, take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.metadata(Metadata::Manifest, take)
    }

    /// The image's object index.
    pub fn index(&self) -> Result<Unverified, LinkError> {
        Ok(self.all_metadata(Metadata::Index)?.into())
    }

    /// The image's boot profile: what to read ahead. A hint that nothing vouches for; empty if there is none.
    pub fn profile(&self) -> Result<Vec<Hint>, LinkError> {
        Ok(decode_hints(kind::GET, &self.all_metadata(Metadata::Profile)?)?)
    }

    fn all_metadata(&self, what: Metadata) -> Result<Vec<u8>, LinkError> {
        let mut all = Vec::new();
        self.metadata(what, |chunk| -> Result<(), LinkError> {
            all.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(all)
    }

    /// Hands all of one kind of metadata to `take`: a chunk is always on its way while `take` has the one before.
    fn metadata<E: From<LinkError>>(
        &self,
        what: Metadata,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let size = self.metadata_size(what);
        let request = |offset: u64| {
            let len = (size - offset).min(CHUNK.into()) as u32;
            self.request(&Request::Get { what, offset, len }, len)
        };
        let mut offsets = (0..size).step_by(CHUNK as usize);
        let mut next = offsets.next().map(request);
        while let Some(ticket) = next {
            next = offsets.next().map(request);
            if let Err(error) = self.receive(ticket).map_err(E::from).and_then(|chunk| take(&chunk)) {
                next.into_iter().for_each(|ticket| self.forget(ticket));
                return Err(error);
            }
        }
        Ok(())
    }

    /// `len` bytes (1 to [`MAX_READ`]) at byte `offset` of an object; the range must lie inside it.
    pub fn read(&self, id: ObjectId, offset: u64, len: u32) -> Result<Unverified, LinkError> {
        self.redeem(self.request_range(id, offset, len))
    }

    /// Asks for what [`Link::read`] returns, without waiting.
    pub fn request_range(&self, id: ObjectId, offset: u64, len: u32) -> Ticket {
        self.request(&Request::Read { id, offset, len }, len)
    }

    /// Asks for `len` bytes (1 to [`MAX_READ`]) at `offset` of a level of an object's Merkle tree without waiting.
    pub fn request_nodes(&self, id: ObjectId, level: u8, offset: u64, len: u32) -> Ticket {
        self.request(&Request::Nodes { id, level, offset, len }, len)
    }

    /// Asks for ranges of objects without waiting: each reply is fetched with [`Link::redeem`], or given up with
    /// [`Link::forget`].
    pub fn request_ranges(&self, ranges: &[ObjectRange]) -> Vec<Ticket> {
        ranges.chunks(MAX_BATCH).flat_map(|batch| self.request_batch(batch)).collect()
    }

    fn request_batch(&self, ranges: &[ObjectRange]) -> Vec<Ticket> {
        let alone = |range: &ObjectRange| Request::Read { id: range.id, offset: range.offset, len: range.len };
        let extents = ranges.iter().map(|range| range.extent).collect();
        let first_tag = self.request_together(ranges.iter().map(alone), &Request::ReadList(extents));
        (first_tag..).zip(ranges).map(|(tag, range)| Ticket { tag, len: range.len }).collect()
    }

    /// Waits for the bytes that a ticket stands for.
    pub fn redeem(&self, ticket: Ticket) -> Result<Unverified, LinkError> {
        Ok(self.receive(ticket)?.into())
    }

    /// Tells the host what happened here at `at` (nanoseconds since the kernel started); `text` may be empty.
    /// Lost if the connection is.
    pub fn send_event(&self, kind: EventKind, at: u64, text: &str) {
        self.notify(&Request::Event { kind, at, text: text.into() });
    }
}
