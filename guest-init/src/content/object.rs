//! The two kinds of objects, and a part of one.

use std::ops::Range;

use lazyroot_proto::ObjectIndex;
use lazyroot_proto::reads::Extent;
use lazyroot_proto::verified::Verified;
use lazyroot_proto::{ObjectId, verity};

/// Objects up to this many bytes travel whole: 99 % of the objects of a Linux image, and at vsock's speed
/// (tens of MiB/s emulated, GB/s otherwise) no dearer than the extra round trip for leaves.
pub const SMALL: u64 = 256 << 10;

/// An object of the image.
#[derive(Clone, Copy, Debug)]
pub enum Object {
    /// One of at most [`SMALL`] bytes.
    Small(SmallObject),
    /// Any other.
    Large(LargeObject),
}

/// An object that travels whole.
#[derive(Clone, Copy, Debug)]
pub struct SmallObject {
    /// Where it is in the index.
    pub position: u32,
    /// Which it is.
    pub id: ObjectId,
    /// In bytes.
    pub size: u64,
}

/// An object of which parts are fetched.
#[derive(Clone, Copy, Debug)]
pub struct LargeObject {
    /// Where it is in the index.
    pub position: u32,
    /// Which it is.
    pub id: ObjectId,
    /// In bytes.
    pub size: u64,
}

/// A part of an object, which the kernel asks for.
#[derive(Clone, Debug)]
pub struct ObjectPart {
    /// The object.
    pub object: Object,
    /// Bytes of it; none beyond its end.
    pub bytes: Range<u64>,
}

impl Object {
    /// The object at `position` in the index, if there is one.
    pub fn at(index: &ObjectIndex, position: u32) -> Option<Self> {
        let (id, size) = index.get(position)?;
        Some(if size <= SMALL {
            Self::Small(SmallObject { position, id, size })
        } else {
            Self::Large(LargeObject { position, id, size })
        })
    }

    /// The object, if it is a small one.
    pub fn small(self) -> Option<SmallObject> {
        match self {
            Self::Small(object) => Some(object),
            Self::Large(_) => None,
        }
    }

    /// The object, if it is a large one.
    pub fn large(self) -> Option<LargeObject> {
        match self {
            Self::Large(object) => Some(object),
            Self::Small(_) => None,
        }
    }

    /// Where it is in the index.
    pub fn position(&self) -> u32 {
        match self {
            Self::Small(object) => object.position,
            Self::Large(object) => object.position,
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Small(object) => object.size,
            Self::Large(object) => object.size,
        }
    }
}

impl LargeObject {
    /// Whole blocks around `bytes`: only they can be checked. The kernel asks for whole pages anyway.
    pub fn blocks_around(&self, bytes: &Range<u64>) -> Range<u64> {
        let block = verity::BLOCK as u64;
        bytes.start / block * block..bytes.end.next_multiple_of(block).min(self.size)
    }
}

impl ObjectPart {
    /// Up to `len` bytes at byte `offset` of the object at `position` in the index; fewer only at its end. `None` if there
    /// is no such object.
    pub fn new(index: &ObjectIndex, position: u32, offset: u64, len: u32) -> Option<Self> {
        let object = Object::at(index, position)?;
        let start = offset.min(object.size());
        Some(Self { object, bytes: start..object.size().min(start + u64::from(len)) })
    }

    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether it has all bytes of its object.
    pub fn is_whole(&self) -> bool {
        self.len() == self.object.size()
    }

    /// The blocks that it lies in; `None` beyond 16 TiB.
    pub fn extent(&self) -> Option<Extent> {
        Extent::around(self.object.position(), self.bytes.start, self.len())
    }
}

/// These bytes of `whole`, shared with it.
pub fn cut(whole: Verified, bytes: Range<usize>) -> Verified {
    if bytes == (0..whole.len()) { whole } else { whole.slice(bytes) }
}
