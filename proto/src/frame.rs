//! Frames: what travels on a connection between a guest and the host.
//!
//! Every frame is a 16-byte header (u32 payload length, u8 kind, 3 zero bytes, u64 tag; little-endian) and a
//! payload. The guest opens every connection and speaks first: a [`Hello`] that says which [`Role`] the
//! connection has. On a data connection requests are pipelined and replies come in any order; a reply carries
//! its request's tag. Payloads are parsed here, once, into values that cannot be wrong.

use crate::reads::{Counters, Extent, Read, decode_extents, decode_reads, encode_extents, encode_reads};
use crate::{Algorithm, ObjectId};

/// Version of the protocol; both ends must have the same one.
pub const VERSION: u16 = 1;

/// First bytes of a hello, so that a stranger on the socket is told apart from an old version.
pub const MAGIC: &[u8; 8] = b"LAZYROOT";

/// Length of a frame's header in bytes.
pub const HEADER: usize = 16;

/// The most bytes one read may ask for: what one FUSE READ carries with the largest readahead the kernel has.
pub const MAX_READ: u32 = 1 << 20;

/// The longest payload either end accepts, in bytes: the largest read's data.
pub const MAX_PAYLOAD: usize = MAX_READ as usize;

/// The most extents a [`Request::ReadList`] may name: a frame of them stays under [`MAX_GUEST_WRITE`].
pub const MAX_BATCH: usize = 128;

/// The most bytes a guest hands to one `write` on a vsock stream. `vhost-device-vsock` 0.3 reads only the
/// first descriptor of a packet and newer kernels send more than 32 KiB in several: a larger write would hang
/// the stream for ever (cloud-hypervisor #7672, libkrun #674 are the same fault). Half of that leaves room.
pub const MAX_GUEST_WRITE: usize = 16 << 10;

/// The vsock port that guests dial unless told otherwise ("LR" in ASCII, doubled to stay off low ports).
pub const DEFAULT_PORT: u32 = 0x4c52;

/// Bytes that are not a frame of this protocol.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The header announces more than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes is longer than the protocol allows")]
    TooLong(u32),
    /// The kind is not one this end expects here.
    #[error("unexpected frame kind {0:#04x}")]
    UnknownKind(u8),
    /// The payload does not have the form of its kind.
    #[error("malformed frame of kind {0:#04x}")]
    Malformed(u8),
    /// The other end does not speak this protocol at all.
    #[error("the peer does not speak lazyroot's protocol")]
    NotLazyroot,
    /// The other end speaks another version.
    #[error(
        "the peer speaks protocol version {0}, this end speaks {VERSION}: use the guest-init built with this lazyroot"
    )]
    Version(u16),
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Payload length in bytes, at most [`MAX_PAYLOAD`].
    pub len: u32,
    /// What the payload is: a `kind::` constant.
    pub kind: u8,
    /// The request that a reply answers; chosen by the requester. 0 where nothing is answered.
    pub tag: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = self.kind;
        bytes[8..].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }

    /// Parses a header.
    ///
    /// # Errors
    /// If the payload would be longer than [`MAX_PAYLOAD`] or reserved bytes are set.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let len = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
        let kind = bytes[4];
        if len as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        if bytes[5..8] != [0; 3] {
            return Err(FrameError::Malformed(kind));
        }
        let tag = u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
        Ok(Self { len, kind, tag })
    }
}

/// Frame kinds, by number. Requests are below 0x80, replies from 0x80, streams from 0xa0.
pub mod kind {
    #![allow(missing_docs, reason = "named as the messages they carry")]
    pub const HELLO: u8 = 0x01;
    pub const GET: u8 = 0x02;
    pub const READ: u8 = 0x03;
    pub const NODES: u8 = 0x04;
    pub const PING: u8 = 0x05;
    pub const EVENT: u8 = 0x06;
    pub const READ_LIST: u8 = 0x07;
    pub const READS: u8 = 0x08;
    pub const COUNTERS: u8 = 0x09;
    pub const WELCOME: u8 = 0x81;
    pub const DATA: u8 = 0x82;
    pub const ERROR: u8 = 0x83;
    pub const PONG: u8 = 0x85;
    pub const OPEN_STREAM: u8 = 0x90;
    pub const POWER_OFF: u8 = 0x91;
    pub const SETTINGS: u8 = 0x92;
}

/// What a connection is for; the first thing a guest says on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads of the image with this manifest digest.
    Data(ObjectId),
    /// The host asks for streams here.
    Control,
    /// The stream that [`FromHost::OpenStream`] asked for.
    Stream(u64),
    /// Another lazyroot reads images here: [`crate::peer`].
    Peer,
    /// The guest's [`Settings`](crate::settings::Settings), once.
    Settings,
}

/// A guest's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the connection is for.
    pub role: Role,
}

/// Which of an image's metadata files a [`Request::Get`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// The EROFS manifest.
    Manifest,
    /// The object index.
    Index,
    /// The boot profile: extents to read ahead, the one needed first first ([`crate::reads::encode_hints`]).
    /// Nothing vouches for it.
    Profile,
}

impl Metadata {
    const ALL: [Metadata; 3] = [Metadata::Manifest, Metadata::Index, Metadata::Profile];
}

/// What happened in the guest, told to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// guest-init runs.
    Init,
    /// The image's root is mounted.
    Mounted,
    /// The command or the image's init is about to start.
    Started,
    /// Something failed; the text says what. The guest goes on.
    Warning,
    /// The guest cannot go on and powers off; the text says why.
    Fatal,
    /// The image's init says that the system is up, or has no way to say it and runs.
    Ready,
}

/// What a guest sends on a data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first frame.
    Hello(Hello),
    /// `len` bytes at `offset` of the manifest or the index.
    Get {
        /// Which file.
        what: Metadata,
        /// In bytes.
        offset: u64,
        /// In bytes, at most [`MAX_READ`].
        len: u32,
    },
    /// `len` bytes at `offset` of an object. The range must lie inside the object.
    Read {
        /// Which object.
        id: ObjectId,
        /// In bytes.
        offset: u64,
        /// In bytes, at most [`MAX_READ`].
        len: u32,
    },
    /// Extents of objects, each answered by its own DATA or ERROR frame with tags `tag`, `tag + 1`, ... Meant for what
    /// is read ahead of need. At most [`MAX_BATCH`], each of at most [`MAX_READ`] bytes.
    ReadList(Vec<Extent>),
    /// `len` bytes at `offset` of a level of an object's Merkle tree (see [`crate::verity`]).
    Nodes {
        /// Which object.
        id: ObjectId,
        /// 0 for the leaves.
        level: u8,
        /// In bytes.
        offset: u64,
        /// In bytes, at most [`MAX_READ`].
        len: u32,
    },
    /// Is anybody there? Answered at once, ahead of reads under way.
    Ping,
    /// What programs have read; not answered.
    Reads(Vec<Read>),
    /// What the guest's data plane has done so far; not answered.
    Counters(Box<Counters>),
    /// Something happened; not answered.
    Event {
        /// What.
        kind: EventKind,
        /// When: nanoseconds since the guest's kernel started (CLOCK_MONOTONIC).
        at: u64,
        /// For people; may be empty.
        text: String,
    },
}

/// Why a request failed; the numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The session may not read this, or the image is not here.
    Refused,
    /// The object is damaged or cannot be read.
    Unavailable,
    /// The request makes no sense (a range outside the object).
    Invalid,
}

/// What the host sends on data and control connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// The answer to a hello.
    Welcome {
        /// Size of the EROFS manifest in bytes (0 unless the role is data).
        manifest_size: u64,
        /// Size of the object index in bytes (0 unless the role is data).
        index_size: u64,
        /// Size of the boot profile in bytes (0 if there is none).
        profile_size: u64,
    },
    /// What a read asked for, all of it.
    Data(&'a [u8]),
    /// The request failed.
    Error {
        /// Which kind of failure.
        code: ErrorCode,
        /// One line for people; names the object.
        message: String,
    },
    /// The answer to a ping.
    Pong,
    /// On a control connection: open a stream with this number.
    OpenStream(u64),
    /// On a control connection: shut down, sync and power off.
    PowerOff,
    /// On a settings connection: the guest's settings.
    Settings(&'a [u8]),
}

/// Appends fields, little-endian.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(crate) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
    pub(crate) fn id(self, id: &ObjectId) -> Self {
        self.u8(id.algorithm().number()).bytes(id.as_bytes())
    }
    /// The whole frame: header and what was written.
    pub(crate) fn frame(self, kind: u8, tag: u64) -> Vec<u8> {
        let header = Header { len: self.0.len() as u32, kind, tag };
        [&header.encode()[..], &self.0].concat()
    }
}

/// Takes fields off a payload; any shortage makes the frame malformed.
pub(crate) struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(kind: u8, payload: &'a [u8]) -> Self {
        Self { kind, rest: payload }
    }
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        Ok(self.bytes(N)?.try_into().expect("N bytes were taken"))
    }
    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn id(&mut self) -> Result<ObjectId, FrameError> {
        let algorithm = Algorithm::from_number(self.u8()?).ok_or(self.malformed())?;
        let digest = self.bytes(algorithm.digest_len())?;
        Ok(ObjectId::new(algorithm, digest).expect("the digest's length was taken from the algorithm"))
    }
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.rest()).into_owned()
    }
    /// A length in 1..=[`MAX_READ`].
    fn read_len(&mut self) -> Result<u32, FrameError> {
        match self.u32()? {
            len @ 1..=MAX_READ => Ok(len),
            _ => Err(self.malformed()),
        }
    }
    pub(crate) fn malformed(&self) -> FrameError {
        FrameError::Malformed(self.kind)
    }
    /// `value`, if the payload was used up.
    pub(crate) fn end<T>(self, value: T) -> Result<T, FrameError> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.malformed()) }
    }
}

impl EventKind {
    const ALL: [EventKind; 6] = [
        EventKind::Init,
        EventKind::Mounted,
        EventKind::Started,
        EventKind::Warning,
        EventKind::Fatal,
        EventKind::Ready,
    ];
}

impl ErrorCode {
    const ALL: [ErrorCode; 3] = [ErrorCode::Refused, ErrorCode::Unavailable, ErrorCode::Invalid];
}

impl Request {
    /// The whole frame, header included. Never longer than [`MAX_GUEST_WRITE`] unless an event's text is.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let out = Writer::default();
        match self {
            Request::Hello(hello) => {
                let out = out.bytes(MAGIC).u16(VERSION);
                let out = match &hello.role {
                    Role::Data(manifest) => out.u8(0).id(manifest),
                    Role::Control => out.u8(1),
                    Role::Stream(number) => out.u8(2).u64(*number),
                    Role::Peer => out.u8(3),
                    Role::Settings => out.u8(4),
                };
                out.frame(kind::HELLO, tag)
            }
            Request::Get { what, offset, len } => out.u8(*what as u8).u64(*offset).u32(*len).frame(kind::GET, tag),
            Request::Read { id, offset, len } => out.id(id).u64(*offset).u32(*len).frame(kind::READ, tag),
            Request::ReadList(extents) => out.bytes(&encode_extents(extents)).frame(kind::READ_LIST, tag),
            Request::Reads(reads) => out.bytes(&encode_reads(reads)).frame(kind::READS, tag),
            Request::Counters(counters) => out.bytes(&counters.encode()).frame(kind::COUNTERS, tag),
            Request::Nodes { id, level, offset, len } => {
                out.id(id).u8(*level).u64(*offset).u32(*len).frame(kind::NODES, tag)
            }
            Request::Ping => out.frame(kind::PING, tag),
            Request::Event { kind: event, at, text } => {
                out.u8(*event as u8).u64(*at).bytes(text.as_bytes()).frame(kind::EVENT, tag)
            }
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind is not a request's or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let request = match kind {
            kind::HELLO => {
                if fields.bytes(MAGIC.len()).ok() != Some(MAGIC) {
                    return Err(FrameError::NotLazyroot);
                }
                match fields.u16()? {
                    VERSION => (),
                    other => return Err(FrameError::Version(other)),
                }
                let role = match fields.u8()? {
                    0 => Role::Data(fields.id()?),
                    1 => Role::Control,
                    2 => Role::Stream(fields.u64()?),
                    3 => Role::Peer,
                    4 => Role::Settings,
                    _ => return Err(fields.malformed()),
                };
                Request::Hello(Hello { role })
            }
            kind::GET => {
                let what = *Metadata::ALL.get(fields.u8()? as usize).ok_or(fields.malformed())?;
                Request::Get { what, offset: fields.u64()?, len: fields.read_len()? }
            }
            kind::READ => Request::Read { id: fields.id()?, offset: fields.u64()?, len: fields.read_len()? },
            kind::READ_LIST => {
                let extents = decode_extents(kind, fields.rest())?;
                let fits = |extent: &Extent| extent.blocks <= MAX_READ / crate::verity::BLOCK as u32;
                if extents.is_empty() || extents.len() > MAX_BATCH || !extents.iter().all(fits) {
                    return Err(fields.malformed());
                }
                Request::ReadList(extents)
            }
            kind::READS => Request::Reads(decode_reads(kind, fields.rest())?),
            kind::COUNTERS => Request::Counters(Box::new(Counters::decode(&mut fields)?)),
            kind::NODES => {
                Request::Nodes { id: fields.id()?, level: fields.u8()?, offset: fields.u64()?, len: fields.read_len()? }
            }
            kind::PING => Request::Ping,
            kind::EVENT => {
                let event = *EventKind::ALL.get(fields.u8()? as usize).ok_or(fields.malformed())?;
                Request::Event { kind: event, at: fields.u64()?, text: fields.text() }
            }
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(request)
    }
}

impl<'a> FromHost<'a> {
    /// The whole frame, header included.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let out = Writer::default();
        match self {
            FromHost::Welcome { manifest_size, index_size, profile_size } => {
                out.u16(VERSION).u64(*manifest_size).u64(*index_size).u64(*profile_size).frame(kind::WELCOME, tag)
            }
            FromHost::Data(data) => out.bytes(data).frame(kind::DATA, tag),
            FromHost::Error { code, message } => out.u8(*code as u8).bytes(message.as_bytes()).frame(kind::ERROR, tag),
            FromHost::Pong => out.frame(kind::PONG, tag),
            FromHost::OpenStream(number) => out.u64(*number).frame(kind::OPEN_STREAM, tag),
            FromHost::PowerOff => out.frame(kind::POWER_OFF, tag),
            FromHost::Settings(settings) => out.bytes(settings).frame(kind::SETTINGS, tag),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind is not the host's or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let message = match kind {
            kind::WELCOME => {
                match fields.u16()? {
                    VERSION => (),
                    other => return Err(FrameError::Version(other)),
                }
                FromHost::Welcome {
                    manifest_size: fields.u64()?,
                    index_size: fields.u64()?,
                    profile_size: fields.u64()?,
                }
            }
            kind::DATA => FromHost::Data(fields.rest()),
            kind::ERROR => {
                let code = *ErrorCode::ALL.get(fields.u8()? as usize).ok_or(fields.malformed())?;
                FromHost::Error { code, message: fields.text() }
            }
            kind::PONG => FromHost::Pong,
            kind::OPEN_STREAM => FromHost::OpenStream(fields.u64()?),
            kind::POWER_OFF => FromHost::PowerOff,
            kind::SETTINGS => FromHost::Settings(fields.rest()),
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reads::Origin;
    use crate::verity;
    use proptest::prelude::*;

    fn split(frame: &[u8]) -> (Header, &[u8]) {
        let header = Header::decode(frame[..HEADER].try_into().unwrap()).unwrap();
        assert_eq!(header.len as usize, frame.len() - HEADER);
        (header, &frame[HEADER..])
    }

    #[test]
    fn requests_round_trip() {
        let id = verity::digest(Algorithm::Sha512, b"x");
        let extent = Extent { position: 1, block: 2, blocks: 3 };
        let read = Read { extent, at: 4, waited: 5, origin: Origin::Failed };
        let requests = [
            Request::Hello(Hello { role: Role::Data(id) }),
            Request::Hello(Hello { role: Role::Control }),
            Request::Hello(Hello { role: Role::Stream(7) }),
            Request::Hello(Hello { role: Role::Settings }),
            Request::Hello(Hello { role: Role::Peer }),
            Request::Get { what: Metadata::Manifest, offset: 1, len: 2 },
            Request::Get { what: Metadata::Index, offset: 1 << 40, len: MAX_READ },
            Request::Read { id, offset: 4096, len: 4096 },
            Request::ReadList(vec![Extent { position: 1, block: 2, blocks: 256 }; MAX_BATCH]),
            Request::Reads(vec![read; 600]),
            Request::Counters(Box::new(Counters { profile_bytes: 7, ..Counters::default() })),
            Request::Get { what: Metadata::Profile, offset: 0, len: 1 },
            Request::Nodes { id, level: 2, offset: 0, len: 64 },
            Request::Ping,
            Request::Event { kind: EventKind::Fatal, at: 5, text: "why".into() },
        ];
        for request in requests {
            let frame = request.encode(42);
            let (header, payload) = split(&frame);
            assert_eq!(header.tag, 42);
            assert!(frame.len() <= MAX_GUEST_WRITE);
            assert_eq!(Request::decode(header.kind, payload), Ok(request));
        }
    }

    #[test]
    fn replies_round_trip() {
        let replies = [
            FromHost::Welcome { manifest_size: 1, index_size: 2, profile_size: 3 },
            FromHost::Data(b"bytes"),
            FromHost::Error { code: ErrorCode::Unavailable, message: "object ab".into() },
            FromHost::Pong,
            FromHost::OpenStream(9),
            FromHost::PowerOff,
            FromHost::Settings(b"settings"),
        ];
        for reply in replies {
            let frame = reply.encode(7);
            let (header, payload) = split(&frame);
            assert_eq!(FromHost::decode(header.kind, payload), Ok(reply));
        }
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        assert_eq!(Request::decode(kind::HELLO, b"GET / HTTP/1.1\r\n"), Err(FrameError::NotLazyroot));
        let mut hello = Request::Hello(Hello { role: Role::Control }).encode(0);
        hello[HEADER + 8] = 9;
        assert_eq!(Request::decode(kind::HELLO, &hello[HEADER..]), Err(FrameError::Version(9)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(kind in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::decode(kind, &payload) {
                let frame = request.encode(0);
                prop_assert_eq!(Request::decode(kind, &frame[HEADER..]), Ok(request));
            }
            let _ = FromHost::decode(kind, &payload);
            let _ = crate::exec::ToGuest::decode(kind, &payload);
            let _ = crate::exec::ToHost::decode(kind, &payload);
        }
    }
}
