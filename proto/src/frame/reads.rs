//! What a guest read, and what it should have before it asks: extents of objects, reports of reads, and a guest's
//! counters.
//!
//! All integers are little-endian on the wire.

use super::fields::{Reader, Writer};
use super::header::FrameError;
use crate::verity::BLOCK;

/// A run of an object's blocks of [`BLOCK`] bytes. The last one may be shorter than its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The object's position in the image's index.
    pub position: u32,
    /// The first block.
    pub block: u32,
    /// How many blocks, at least 1.
    pub blocks: u32,
}

impl Extent {
    /// Bytes of an extent on the wire.
    pub const LEN: usize = 12;

    /// The blocks that hold the `len` bytes (at least 1) at byte `offset`. `None` beyond 16 TiB.
    pub fn around(position: u32, offset: u64, len: u64) -> Option<Self> {
        let block = offset / BLOCK as u64;
        let blocks = offset.checked_add(len)?.div_ceil(BLOCK as u64) - block;
        Some(Self { position, block: block.try_into().ok()?, blocks: u32::try_from(blocks.max(1)).ok()? })
    }

    /// Where it lies in an object of `size` bytes: byte offset and length. `None` if it begins behind the end.
    pub fn bytes(&self, size: u64) -> Option<(u64, u64)> {
        let offset = u64::from(self.block) * BLOCK as u64;
        let len = size.checked_sub(offset).filter(|rest| *rest > 0)?.min(u64::from(self.blocks) * BLOCK as u64);
        (len > 0).then_some((offset, len))
    }

    fn encode(&self, out: Writer) -> Writer {
        out.u32(self.position).u32(self.block).u32(self.blocks)
    }

    fn decode(fields: &mut Reader) -> Result<Self, FrameError> {
        let extent = Self { position: fields.u32()?, block: fields.u32()?, blocks: fields.u32()? };
        if extent.blocks == 0 { Err(fields.malformed()) } else { Ok(extent) }
    }
}

/// Extents one after the other, as in a READ_LIST request.
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    extents.iter().fold(Writer::default(), |out, extent| extent.encode(out)).0
}

/// Reads what [`encode_extents`] wrote; `kind` is the frame's.
///
/// # Errors
/// If the bytes are not whole extents of at least one block each.
pub fn decode_extents(kind: u8, bytes: &[u8]) -> Result<Vec<Extent>, FrameError> {
    bytes.chunks(Extent::LEN).map(|chunk| Extent::decode(&mut Reader::new(kind, chunk))).collect()
}

/// An extent of a boot profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// What to read ahead.
    pub extent: Extent,
    /// Whether the guest is to keep it where it sees when a program asks for it, which costs the program a request. What
    /// is not watched goes where programs find it by themselves.
    pub watched: bool,
}

impl Hint {
    /// Bytes of a hint on the wire.
    pub const LEN: usize = Extent::LEN + 1;
}

/// Hints one after the other: a boot profile (GET of [`crate::frame::Metadata::Profile`]).
pub fn encode_hints(hints: &[Hint]) -> Vec<u8> {
    hints.iter().fold(Writer::default(), |out, hint| hint.extent.encode(out).u8(hint.watched.into())).0
}

/// Reads what [`encode_hints`] wrote; `kind` is the frame's.
///
/// # Errors
/// If the bytes are not whole hints.
pub fn decode_hints(kind: u8, bytes: &[u8]) -> Result<Vec<Hint>, FrameError> {
    let decode = |chunk| {
        let mut fields = Reader::new(kind, chunk);
        Ok(Hint { extent: Extent::decode(&mut fields)?, watched: fields.u8()? != 0 })
    };
    bytes.chunks(Hint::LEN).map(decode).collect()
}

/// Where the bytes of a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The host, asked for when they were needed.
    Host,
    /// They came along with objects before them, and were there or on their way when they were needed.
    Neighbour,
    /// The boot profile had them sent ahead.
    Profile,
    /// The guest's own cache of what it had fetched for an earlier read.
    Cache,
    /// They could not be had.
    Failed,
    /// The boot profile had them sent ahead to where programs find them without a request: this is when they were put
    /// there. Nobody sees whether a program reads them, so people and programs are told "unseen" ([`Origin::name`]).
    Preloaded,
}

impl Origin {
    /// In the order of their numbers on the wire.
    pub const ALL: [Origin; 6] =
        [Origin::Host, Origin::Neighbour, Origin::Profile, Origin::Cache, Origin::Failed, Origin::Preloaded];

    /// Whether a program read something, and got it.
    pub fn is_read(self) -> bool {
        !matches!(self, Origin::Failed | Origin::Preloaded)
    }

    /// One word, for people and programs.
    pub fn name(self) -> &'static str {
        ["host", "neighbour", "profile", "cache", "failed", "unseen"][self as usize]
    }
}

/// A read that the guest's kernel asked the data layer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// What was read: what was asked for, rounded to blocks.
    pub extent: Extent,
    /// When it was asked for, in microseconds since the guest's kernel started (CLOCK_MONOTONIC).
    pub at: u64,
    /// How long the program waited, in microseconds.
    pub waited: u32,
    /// Where the bytes came from.
    pub origin: Origin,
}

impl Read {
    /// Bytes of a read on the wire.
    pub const LEN: usize = Extent::LEN + 13;
}

/// Reads one after the other, for a READS frame.
pub fn encode_reads(reads: &[Read]) -> Vec<u8> {
    let encode = |out: Writer, read: &Read| read.extent.encode(out).u64(read.at).u32(read.waited).u8(read.origin as u8);
    reads.iter().fold(Writer::default(), encode).0
}

/// Reads what [`encode_reads`] wrote; `kind` is the frame's.
///
/// # Errors
/// If the bytes are not whole reads.
pub fn decode_reads(kind: u8, bytes: &[u8]) -> Result<Vec<Read>, FrameError> {
    let decode = |chunk| {
        let mut fields = Reader::new(kind, chunk);
        let (extent, at, waited) = (Extent::decode(&mut fields)?, fields.u64()?, fields.u32()?);
        let origin = *Origin::ALL.get(fields.u8()? as usize).ok_or(fields.malformed())?;
        Ok(Read { extent, at, waited, origin })
    };
    bytes.chunks(Read::LEN).map(decode).collect()
}

/// How often something took how long: bucket `i` counts what took at least 2^(i-1) and less than 2^i microseconds
/// (bucket 0: less than 1), the last one everything longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram(pub [u64; Histogram::BUCKETS]);

impl Histogram {
    /// Up to 2^26 us, about a minute: longer than any deadline.
    pub const BUCKETS: usize = 28;

    /// Counts one of `microseconds`.
    pub fn add(&mut self, microseconds: u64) {
        self.0[((u64::BITS - microseconds.leading_zeros()) as usize).min(Self::BUCKETS - 1)] += 1;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// An upper bound, in microseconds, of what `share` (0 to 1) of them took; 0 if there are none.
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        bucket.map_or(0, |bucket| (1 << bucket) - 1)
    }
}

/// What a guest's data plane has done since it started. Each frame replaces the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes whose content was checked against a digest.
    pub verified_bytes: u64,
    /// Reads by [`Origin`], in the order of [`Origin::ALL`].
    pub reads: [u64; Origin::ALL.len()],
    /// Bytes of those reads, likewise.
    pub read_bytes: [u64; Origin::ALL.len()],
    /// Bytes that the boot profile brought and the guest watches: of those that are not to be ([`Hint::watched`]), it
    /// watches what it cannot put where programs find it. The others are [`Origin::Preloaded`].
    pub profile_bytes: u64,
    /// Of those that are watched, bytes that a program has asked for since.
    pub profile_used_bytes: u64,
    /// Bytes that came along as neighbours and were put into the page cache ahead of the program. Whether it read each of
    /// them the kernel does not tell.
    pub neighbour_bytes: u64,
    /// How long LOOKUPs of objects took.
    pub lookup: Histogram,
    /// How long READs took.
    pub read: Histogram,
    /// How long the host's replies took, for requests that a read waited for.
    pub wire: Histogram,
}

impl Counters {
    fn fields(&mut self) -> impl Iterator<Item = &mut u64> {
        let alone = [
            &mut self.verified_bytes,
            &mut self.profile_bytes,
            &mut self.profile_used_bytes,
            &mut self.neighbour_bytes,
        ];
        let histograms = [&mut self.lookup, &mut self.read, &mut self.wire];
        alone
            .into_iter()
            .chain(&mut self.reads)
            .chain(&mut self.read_bytes)
            .chain(histograms.into_iter().flat_map(|histogram| &mut histogram.0))
    }

    /// What was counted here and not yet in `earlier`, of the same guest.
    pub fn since(&self, earlier: &Self) -> Self {
        let (mut news, mut earlier) = (self.clone(), earlier.clone());
        news.fields().zip(earlier.fields()).for_each(|(field, earlier)| *field = field.saturating_sub(*earlier));
        news
    }

    /// Adds what another guest, or the same one later, has counted.
    pub fn add(&mut self, more: &Self) {
        let mut more = more.clone();
        self.fields().zip(more.fields()).for_each(|(field, more)| *field = field.saturating_add(*more));
    }

    /// Whether no number is smaller than in `earlier`: this may be the same guest later.
    pub fn covers(&self, earlier: &Self) -> bool {
        self.clone().fields().zip(earlier.clone().fields()).all(|(field, earlier)| *field >= *earlier)
    }

    /// The payload of a COUNTERS frame: every number as a u64, in the order verified, profile, profile used, neighbours,
    /// reads, bytes read, lookup, read, wire.
    pub fn encode(&self) -> Vec<u8> {
        self.clone().fields().fold(Writer::default(), |out, field| out.u64(*field)).0
    }

    pub(crate) fn decode(fields: &mut Reader) -> Result<Self, FrameError> {
        let mut counters = Self::default();
        for field in counters.fields() {
            *field = fields.u64()?;
        }
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_know_their_bytes() {
        assert_eq!(Extent::around(3, 0, 1), Some(Extent { position: 3, block: 0, blocks: 1 }));
        assert_eq!(Extent::around(3, 4095, 2), Some(Extent { position: 3, block: 0, blocks: 2 }));
        let extent = Extent { position: 3, block: 2, blocks: 4 };
        assert_eq!(extent.bytes(100_000), Some((8192, 16384)));
        assert_eq!(extent.bytes(8193), Some((8192, 1)));
        assert_eq!(extent.bytes(8192), None);
    }

    #[test]
    fn counters_are_compared_field_by_field() {
        let mut later = Counters { verified_bytes: 5, ..Counters::default() };
        later.read.add(3);
        let earlier = Counters { verified_bytes: 3, ..Counters::default() };
        assert!(later.covers(&earlier) && !earlier.covers(&later));
        let news = later.since(&earlier);
        assert_eq!((news.verified_bytes, news.read.count()), (2, 1));
        let mut sum = earlier;
        sum.add(&news);
        assert_eq!(sum, later);
    }

    #[test]
    fn a_histograms_quantiles_are_upper_bounds() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        (0..99).for_each(|_| histogram.add(40));
        histogram.add(1_000_000);
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99)), (63, 63));
        assert_eq!(histogram.quantile(1.0), (1 << 20) - 1);
        histogram.add(u64::MAX);
        assert_eq!(histogram.0[Histogram::BUCKETS - 1], 1);
    }
}
