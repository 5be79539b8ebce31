//! What a guest sends.

use super::fields::{Reader, Writer};
use super::header::{FrameError, MAGIC, MAX_BATCH, MAX_READ, VERSION};
use super::kind;
use super::reads::{Counters, Extent, Read, decode_extents, decode_reads, encode_extents, encode_reads};
use crate::ObjectId;
use crate::verity::BLOCK;

/// What a connection is for; the first thing a guest says on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads of the image with this manifest digest.
    Data(ObjectId),
    /// The host asks for streams here.
    Control,
    /// The stream that [`HostMessage::OpenStream`] asked for.
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
                let fits = |extent: &Extent| extent.blocks <= MAX_READ / BLOCK as u32;
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
