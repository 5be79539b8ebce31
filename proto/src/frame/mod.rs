//! Frames: what travels on a connection between a guest and the host.
//!
//! Every frame is a 16-byte header (u32 payload length, u8 kind, 3 zero bytes, u64 tag; little-endian) and a
//! payload. The guest opens every connection and speaks first: a [`Hello`] that says which [`Role`] the
//! connection has. On a data connection requests are pipelined and replies come in any order; a reply carries
//! its request's tag. Payloads are parsed here, once, into values that cannot be wrong.
//!
//! Here are the header, the fields of payloads, and the messages of data, control and settings connections. Those of
//! other connections are the neighbours': [`crate::exec`] and [`crate::service`] on streams that the host asked for,
//! [`crate::peer`] between two hosts. Extents, reports of reads and a guest's counters are in [`reads`]. No I/O is here.

pub(crate) mod fields;
pub(crate) mod header;
mod host;
pub mod kind;
pub mod reads;
mod request;

pub use header::{
    DEFAULT_PORT, FrameError, HEADER, Header, MAGIC, MAX_BATCH, MAX_GUEST_WRITE, MAX_PAYLOAD, MAX_READ, VERSION,
};
pub use host::{ErrorCode, HostMessage};
pub use request::{EventKind, Hello, Metadata, Request, Role};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reads::{Counters, Extent, Origin, Read};
    use crate::{Algorithm, verity};
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
            HostMessage::Welcome { manifest_size: 1, index_size: 2, profile_size: 3 },
            HostMessage::Data(b"bytes"),
            HostMessage::Error { code: ErrorCode::Unavailable, message: "object ab".into() },
            HostMessage::Pong,
            HostMessage::OpenStream(9),
            HostMessage::PowerOff,
            HostMessage::Settings(b"settings"),
        ];
        for reply in replies {
            let frame = reply.encode(7);
            let (header, payload) = split(&frame);
            assert_eq!(HostMessage::decode(header.kind, payload), Ok(reply));
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
            let _ = HostMessage::decode(kind, &payload);
            let _ = crate::exec::ExecInput::decode(kind, &payload);
            let _ = crate::exec::ExecOutput::decode(kind, &payload);
        }
    }
}
