//! Frames on asynchronous streams.

use std::io;

use lazyroot_proto::frame::{FrameError, HEADER, Header, MAX_GUEST_WRITE, MAX_PAYLOAD};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The next frame: header and payload.
///
/// # Errors
/// `UnexpectedEof` at the end of the stream, `InvalidData` for a header that makes no sense.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Header, Vec<u8>)> {
    read_up_to(stream, MAX_PAYLOAD).await
}

/// The next frame from a guest that sends no more than requests: a longer one is not even read.
pub(in crate::serve) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Header, Vec<u8>)> {
    read_up_to(stream, MAX_GUEST_WRITE).await
}

async fn read_up_to(stream: &mut (impl AsyncRead + Unpin), longest: usize) -> io::Result<(Header, Vec<u8>)> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(&header).map_err(invalid)?;
    if header.len as usize > longest {
        return Err(invalid(FrameError::TooLong(header.len)));
    }
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).await?;
    Ok((header, payload))
}

/// Writes a whole frame, as `encode` made it.
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    stream.write_all(frame).await?;
    stream.flush().await
}
