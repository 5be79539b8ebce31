//! What one lazyroot says to another that it reads images through.
//!
//! A connection whose hello has the role [`Peer`](crate::frame::Role::Peer) carries these requests, pipelined like a
//! guest's, for every image that the other end has. Replies are those of [`crate::frame::HostMessage`] and the two here.

use crate::ObjectId;
use crate::frame::fields::{Reader, Writer};
use crate::frame::{FrameError, HostMessage};

/// The longest reference a [`PeerRequest::Resolve`] may carry, in bytes.
pub const MAX_REFERENCE: usize = 4096;

/// Frame kinds, by number; chosen beside those of [`crate::frame::kind`].
pub mod kind {
    #![allow(missing_docs, reason = "named as the messages they carry")]
    pub const RESOLVE: u8 = 0x10;
    pub const MANIFEST: u8 = 0x11;
    pub const OBJECT: u8 = 0x12;
    pub const OBJECT_LEAVES: u8 = 0x13;
    pub const COMPRESSION: u8 = 0x14;
    pub const IMAGE: u8 = 0xc0;
    pub const PACKED: u8 = 0xc1;
}

/// A range of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRange {
    /// Which object.
    pub id: ObjectId,
    /// The object's size in bytes, as the image's index says.
    pub size: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes, at most [`MAX_READ`](crate::frame::MAX_READ).
    pub len: u32,
}

/// What the reading end sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRequest {
    /// Find an image: a name, a digest, or a source to import it from (`containers-storage:NAME`). May take as long as
    /// an import.
    Resolve(String),
    /// `len` bytes at `offset` of an image's manifest.
    Manifest {
        /// The manifest's digest.
        id: ObjectId,
        /// In bytes.
        offset: u64,
        /// In bytes, at most [`MAX_READ`](crate::frame::MAX_READ).
        len: u32,
    },
    /// A range of an object.
    Object(PeerRange),
    /// A range of an object's Merkle leaves (see [`crate::verity`]); `size` is the object's.
    Leaves(PeerRange),
    /// Compress replies from now on, or do so no more.
    Packing(Packing),
    /// Is anybody there? Answered at once, ahead of reads under way.
    Ping,
}

/// How replies with data are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    None,
    /// With zstd, where that makes them shorter.
    Zstd,
}

/// What the serving end sends besides [`HostMessage`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerReply<'a> {
    /// The image that was asked for.
    Image {
        /// The manifest's digest.
        id: ObjectId,
        /// The manifest's size in bytes.
        manifest_size: u64,
        /// Its name there; empty if it was found by digest.
        name: String,
        /// Its OCI configuration, JSON; empty if it has none.
        config: &'a [u8],
    },
    /// What a read asked for, all of it, as one zstd frame.
    Packed {
        /// Its length unpacked, in bytes, at most [`MAX_READ`](crate::frame::MAX_READ).
        len: u32,
        /// The zstd frame.
        data: &'a [u8],
    },
    /// As a guest gets it.
    Plain(HostMessage<'a>),
}

impl PeerRange {
    fn write(&self, kind: u8, tag: u64) -> Vec<u8> {
        Writer::default().id(&self.id).u64(self.size).u64(self.offset).u32(self.len).frame(kind, tag)
    }

    fn read(fields: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self { id: fields.id()?, size: fields.u64()?, offset: fields.u64()?, len: fields.read_len()? })
    }
}

impl PeerRequest {
    /// The whole frame, header included.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let out = Writer::default();
        match self {
            PeerRequest::Resolve(reference) => out.bytes(reference.as_bytes()).frame(kind::RESOLVE, tag),
            PeerRequest::Manifest { id, offset, len } => out.id(id).u64(*offset).u32(*len).frame(kind::MANIFEST, tag),
            PeerRequest::Object(range) => range.write(kind::OBJECT, tag),
            PeerRequest::Leaves(range) => range.write(kind::OBJECT_LEAVES, tag),
            PeerRequest::Packing(packing) => out.u8(*packing as u8).frame(kind::COMPRESSION, tag),
            PeerRequest::Ping => crate::frame::Request::Ping.encode(tag),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind is not one of these requests' or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let request = match kind {
            kind::RESOLVE if payload.len() <= MAX_REFERENCE => {
                let reference = std::str::from_utf8(fields.rest()).map_err(|_| FrameError::Malformed(kind))?;
                PeerRequest::Resolve(reference.to_owned())
            }
            kind::RESOLVE => return Err(FrameError::Malformed(kind)),
            kind::MANIFEST => {
                PeerRequest::Manifest { id: fields.id()?, offset: fields.u64()?, len: fields.read_len()? }
            }
            kind::OBJECT => PeerRequest::Object(PeerRange::read(&mut fields)?),
            kind::OBJECT_LEAVES => PeerRequest::Leaves(PeerRange::read(&mut fields)?),
            kind::COMPRESSION => PeerRequest::Packing(match fields.u8()? {
                0 => Packing::None,
                1 => Packing::Zstd,
                _ => return Err(fields.malformed()),
            }),
            crate::frame::kind::PING => PeerRequest::Ping,
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(request)
    }
}

impl<'a> PeerReply<'a> {
    /// The whole frame, header included.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let out = Writer::default();
        match self {
            PeerReply::Image { id, manifest_size, name, config } => {
                let out = out.id(id).u64(*manifest_size).u16(name.len() as u16);
                out.bytes(name.as_bytes()).bytes(config).frame(kind::IMAGE, tag)
            }
            PeerReply::Packed { len, data } => out.u32(*len).bytes(data).frame(kind::PACKED, tag),
            PeerReply::Plain(reply) => reply.encode(tag),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind is not a reply's or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let reply = match kind {
            kind::IMAGE => {
                let (id, manifest_size) = (fields.id()?, fields.u64()?);
                let len = fields.u16()?;
                let name = std::str::from_utf8(fields.bytes(len.into())?).map_err(|_| FrameError::Malformed(kind))?;
                PeerReply::Image { id, manifest_size, name: name.to_owned(), config: fields.rest() }
            }
            kind::PACKED => PeerReply::Packed { len: fields.read_len()?, data: fields.rest() },
            _ => return HostMessage::decode(kind, payload).map(PeerReply::Plain),
        };
        fields.end(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{HEADER, Header, MAX_READ};
    use crate::{Algorithm, verity};
    use proptest::prelude::*;

    fn split(frame: &[u8]) -> (u8, &[u8]) {
        let header = Header::decode(frame[..HEADER].try_into().unwrap()).unwrap();
        assert_eq!((header.len as usize, header.tag), (frame.len() - HEADER, 3));
        (header.kind, &frame[HEADER..])
    }

    #[test]
    fn messages_round_trip() {
        let id = verity::digest(Algorithm::Sha512, b"x");
        let range = PeerRange { id, size: 1 << 33, offset: 1 << 32, len: MAX_READ };
        for request in [
            PeerRequest::Resolve("containers-storage:localhost/os:1".into()),
            PeerRequest::Manifest { id, offset: 7, len: 1 },
            PeerRequest::Object(range),
            PeerRequest::Leaves(range),
            PeerRequest::Packing(Packing::Zstd),
            PeerRequest::Packing(Packing::None),
            PeerRequest::Ping,
        ] {
            let frame = request.encode(3);
            let (kind, payload) = split(&frame);
            assert_eq!(PeerRequest::decode(kind, payload), Ok(request));
        }
        for reply in [
            PeerReply::Image { id, manifest_size: 9, name: "a:b".into(), config: b"{}" },
            PeerReply::Packed { len: 5, data: b"zstd" },
            PeerReply::Plain(HostMessage::Data(b"bytes")),
            PeerReply::Plain(HostMessage::Pong),
        ] {
            let frame = reply.encode(3);
            let (kind, payload) = split(&frame);
            assert_eq!(PeerReply::decode(kind, payload), Ok(reply));
        }
    }

    #[test]
    fn lengths_beyond_the_limits_are_refused() {
        let long = PeerRequest::Resolve("a".repeat(MAX_REFERENCE + 1)).encode(3);
        assert_eq!(PeerRequest::decode(kind::RESOLVE, split(&long).1), Err(FrameError::Malformed(kind::RESOLVE)));
        for len in [0, MAX_READ + 1] {
            let frame = PeerReply::Packed { len, data: b"" }.encode(3);
            assert_eq!(PeerReply::decode(kind::PACKED, split(&frame).1), Err(FrameError::Malformed(kind::PACKED)));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(kind in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = PeerRequest::decode(kind, &payload) {
                let frame = request.encode(0);
                prop_assert_eq!(PeerRequest::decode(kind, &frame[HEADER..]), Ok(request));
            }
            let _ = PeerReply::decode(kind, &payload);
        }
    }
}
