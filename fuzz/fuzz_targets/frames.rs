//! What the other end sends: any bytes are a message or an error, and a message survives being written again.
#![no_main]

use lazyroot_proto::exec::{ExecInput, ExecOutput};
use lazyroot_proto::frame::{HostMessage, HEADER, Header, Request};
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
    if let Ok(reply) = HostMessage::decode(header.kind, payload) {
        let frame = reply.encode(header.tag);
        assert_eq!(HostMessage::decode(header.kind, &frame[HEADER..]), Ok(reply));
    }
    let _ = ExecInput::decode(header.kind, payload);
    let _ = ExecOutput::decode(header.kind, payload);
});
