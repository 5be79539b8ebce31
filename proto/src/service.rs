//! Services of the guest's agent, each on a stream that the host asked for: a connection to something in the guest, a
//! copy in or out, the list of processes, the upper layer. To run a program is [`crate::exec`].
//!
//! The host's first frame is a [`Service`]. After that both ends send [`ServiceFrame`]s.

use crate::frame::fields::{Reader, Writer};
use crate::frame::header::FrameError;

/// Frame kinds of these streams.
pub mod kind {
    #![allow(missing_docs, reason = "named as the messages they carry")]
    pub const CONNECT: u8 = 0xb0;
    pub const PUT: u8 = 0xb1;
    pub const GET: u8 = 0xb2;
    pub const PROCESSES: u8 = 0xb3;
    pub const UPPER: u8 = 0xb4;
    pub const DATA: u8 = 0xb8;
    pub const DONE: u8 = 0xb9;
    pub const FAILED: u8 = 0xba;
}

/// The most bytes of data in one frame.
pub const MAX_DATA: usize = 64 << 10;

/// Something in the guest that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP port of the guest's own address 127.0.0.1.
    Tcp(u16),
    /// A unix socket, by its path.
    Unix(Vec<u8>),
}

/// A service that the host asks for: the first frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// A connection: DONE once it is there, then data both ways; empty data is the end of a direction.
    Connect(Target),
    /// Files for this path: data, a tar archive that ends with empty data; then the guest's DONE.
    Put(Vec<u8>),
    /// The files at this path: data from the guest, a tar archive; then its DONE.
    Get(Vec<u8>),
    /// What runs: data from the guest, lines of text; then its DONE.
    Processes,
    /// The root's upper layer as overlayfs keeps it: data from the guest, a tar archive; then its DONE.
    Upper,
}

/// What either end sends after the host's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceFrame {
    /// Bytes, at most [`MAX_DATA`]; empty: no more will come.
    Data(Vec<u8>),
    /// From the guest: it is done.
    Done,
    /// From the guest: it cannot be done; the text says why. Last frame.
    Failed(String),
}

impl Service {
    /// The whole frame, header included.
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::default();
        match self {
            Service::Connect(Target::Tcp(port)) => out.u8(0).u16(*port).frame(kind::CONNECT, 0),
            Service::Connect(Target::Unix(path)) => out.u8(1).bytes(path).frame(kind::CONNECT, 0),
            Service::Put(path) => out.bytes(path).frame(kind::PUT, 0),
            Service::Get(path) => out.bytes(path).frame(kind::GET, 0),
            Service::Processes => out.frame(kind::PROCESSES, 0),
            Service::Upper => out.frame(kind::UPPER, 0),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind does not belong here or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let service = match kind {
            kind::CONNECT => match fields.u8()? {
                0 => Service::Connect(Target::Tcp(fields.u16()?)),
                1 => Service::Connect(Target::Unix(fields.rest().to_vec())),
                _ => return Err(fields.malformed()),
            },
            kind::PUT => Service::Put(fields.rest().to_vec()),
            kind::GET => Service::Get(fields.rest().to_vec()),
            kind::PROCESSES => Service::Processes,
            kind::UPPER => Service::Upper,
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(service)
    }
}

impl ServiceFrame {
    /// The whole frame, header included.
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::default();
        match self {
            ServiceFrame::Data(data) => out.bytes(data).frame(kind::DATA, 0),
            ServiceFrame::Done => out.frame(kind::DONE, 0),
            ServiceFrame::Failed(why) => out.bytes(why.as_bytes()).frame(kind::FAILED, 0),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind does not belong here or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let piece = match kind {
            kind::DATA if payload.len() > MAX_DATA => return Err(FrameError::TooLong(payload.len() as u32)),
            kind::DATA => ServiceFrame::Data(fields.rest().to_vec()),
            kind::DONE => ServiceFrame::Done,
            kind::FAILED => ServiceFrame::Failed(fields.text()),
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER;

    #[test]
    fn messages_round_trip() {
        let services = [
            Service::Connect(Target::Tcp(80)),
            Service::Connect(Target::Unix(b"/run/\xff".to_vec())),
            Service::Put(b"/tmp".to_vec()),
            Service::Get(b"/etc".to_vec()),
            Service::Processes,
            Service::Upper,
        ];
        for service in services {
            let frame = service.encode();
            assert_eq!(Service::decode(frame[4], &frame[HEADER..]), Ok(service));
        }
        for piece in [
            ServiceFrame::Data(vec![]),
            ServiceFrame::Data(vec![1; MAX_DATA]),
            ServiceFrame::Done,
            ServiceFrame::Failed("why".into()),
        ] {
            let frame = piece.encode();
            assert_eq!(ServiceFrame::decode(frame[4], &frame[HEADER..]), Ok(piece));
        }
        assert!(ServiceFrame::decode(kind::DATA, &[0; MAX_DATA + 1]).is_err());
        assert!(Service::decode(kind::CONNECT, &[2]).is_err());
    }
}
