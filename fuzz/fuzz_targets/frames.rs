//! What the other end sends: any bytes are a message or an error, and a message survives being written again.
#![no_main]

use lazyroot_proto::exec::{ToGuest, ToHost};
use lazyroot_proto::frame::{FromHost, HEADER, Header, Request};
use lazyroot_proto::index::ObjectIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = ObjectIndex::from_bytes(bytes) {
        assert_eq!(index.to_bytes(), bytes);
    }
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER>() else { return };
    let Ok(header) = Header::decode(header) else { return };
    if let Ok(request) = Request::decode(header.kind, payload) {
        let frame = request.encode(header.tag);
        assert_eq!(Request::decode(header.kind, &frame[HEADER..]), Ok(request));
    }
    if let Ok(reply) = FromHost::decode(header.kind, payload) {
        let frame = reply.encode(header.tag);
        assert_eq!(FromHost::decode(header.kind, &frame[HEADER..]), Ok(reply));
    }
    let _ = ToGuest::decode(header.kind, payload);
    let _ = ToHost::decode(header.kind, payload);
});
