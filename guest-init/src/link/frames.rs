//! Frames on a stream: taken off it one by one, and written to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use lazyroot_proto::frame::{HEADER, Header, MAX_GUEST_WRITE};

use crate::sys::append_exactly;

/// Receive buffer for headers and small replies: a full one saves system calls, a larger one only memory.
const BUFFER: usize = 64 << 10;

/// Writes all of `data` in pieces of at most [`MAX_GUEST_WRITE`] bytes (see there why).
pub fn write_capped(mut stream: impl Write, data: &[u8]) -> io::Result<()> {
    data.chunks(MAX_GUEST_WRITE).try_for_each(|piece| stream.write_all(piece))
}

/// Whether a read ended because nothing came in time.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Takes frames off a stream, several small ones per system call.
pub struct FrameReader {
    stream: Arc<File>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl FrameReader {
    /// The stream, to write to.
    pub fn stream(&self) -> Arc<File> {
        self.stream.clone()
    }

    /// A reader of `stream`, from its next byte on.
    pub fn new(stream: Arc<File>) -> Self {
        Self { stream, buffer: vec![0; BUFFER].into(), start: 0, end: 0 }
    }

    /// The next frame. A time-out before its first byte may be tried again; any other error is final for the
    /// stream, a time-out inside a frame included.
    pub fn read_frame(&mut self) -> io::Result<(Header, Vec<u8>)> {
        while self.end - self.start < HEADER {
            if let Err(error) = self.fill() {
                let clean = self.start == self.end && is_timeout(&error);
                return Err(if clean { error } else { io::ErrorKind::UnexpectedEof.into() });
            }
        }
        let header = self.buffer[self.start..][..HEADER].try_into().expect("HEADER bytes");
        let header = Header::decode(header).map_err(io::Error::other)?;
        self.start += HEADER;
        let payload = self.read_payload(header.len as usize).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        Ok((header, payload))
    }

    /// The next frame, if all of it was received together with an earlier one.
    pub fn buffered_frame(&mut self) -> Option<(Header, Vec<u8>)> {
        let (header, payload) = self.buffer[self.start..self.end].split_first_chunk::<HEADER>()?;
        let whole = Header::decode(header).is_ok_and(|header| header.len as usize <= payload.len());
        if whole { self.read_frame().ok() } else { None }
    }

    fn read_payload(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut payload = Vec::with_capacity(len);
        let buffered = len.min(self.end - self.start);
        payload.extend_from_slice(&self.buffer[self.start..][..buffered]);
        self.start += buffered;
        if len - buffered >= BUFFER {
            append_exactly(&self.stream, &mut payload, len - buffered)?;
        }
        while payload.len() < len {
            self.fill()?;
            let part = (len - payload.len()).min(self.end - self.start);
            payload.extend_from_slice(&self.buffer[self.start..][..part]);
            self.start += part;
        }
        Ok(payload)
    }

    /// Reads more, at least one byte.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match (&*self.stream).read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lazyroot_proto::frame::HostMessage;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// Records the size of every write.
    struct Sizes(Vec<usize>);

    impl Write for &mut Sizes {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.push(data.len());
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_write_is_longer_than_vhost_device_vsock_can_take() {
        let mut sizes = Sizes(Vec::new());
        write_capped(&mut sizes, &vec![0; 100_000]).unwrap();
        assert!(sizes.0.iter().all(|&size| size <= MAX_GUEST_WRITE), "{:?}", sizes.0);
        assert_eq!(sizes.0.iter().sum::<usize>(), 100_000);
    }

    #[test]
    fn silence_inside_a_frame_is_final_and_before_one_is_not() {
        for len in [100, 2 * BUFFER] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let mut reader = FrameReader::new(Arc::new(File::from(OwnedFd::from(ours))));
            assert!(is_timeout(&reader.read_frame().unwrap_err()));
            let frame = HostMessage::Data(&vec![0; len]).encode(1);
            theirs.write_all(&frame[..HEADER + len / 2]).unwrap();
            assert_eq!(reader.read_frame().unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{len} bytes");
        }
    }
}
