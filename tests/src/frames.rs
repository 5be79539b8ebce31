//! The protocol, spoken by hand.

use std::io::{self, Read};

use lazyroot_proto::frame::{HEADER, Header};

/// The next frame of a stream: header and payload.
///
/// # Errors
/// If the stream ends first.
pub fn next(stream: &mut impl Read) -> io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let header = Header::decode(&header).expect("a header");
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload)?;
    Ok((header, payload))
}
