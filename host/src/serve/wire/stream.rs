//! Byte streams to guests and to other lazyroots, of whichever kind.

use std::fs::File;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, Join, Stdin, Stdout, WriteHalf};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpStream, UnixStream};

/// A byte stream.
pub type BoxStream = Pin<Box<dyn Duplex>>;

/// What comes in.
pub type Source = Pin<Box<dyn AsyncRead + Send>>;

/// What goes out.
pub type Sink = Pin<Box<dyn SendFile>>;

/// Both directions of a byte stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send {
    /// Takes it apart.
    fn halves(self: Pin<Box<Self>>) -> (Source, Sink);
}

/// Somewhere to write to that may take a file's pages as they are.
pub trait SendFile: AsyncWrite + Send {
    /// Sends up to `len` bytes of `file` from `offset` on, and copies none of them. How many: 0 if this stream takes none so,
    /// or none now.
    fn send_file(&self, _file: &File, _offset: u64, _len: usize) -> usize {
        0
    }
}

impl SendFile for OwnedWriteHalf {
    #[cfg(target_os = "linux")]
    fn send_file(&self, file: &File, mut offset: u64, len: usize) -> usize {
        // Errors too: whoever writes next meets them again.
        rustix::fs::sendfile(self.as_ref(), file, Some(&mut offset), len).unwrap_or(0)
    }
}

impl<T: AsyncWrite + Send> SendFile for WriteHalf<T> {}

impl Duplex for UnixStream {
    fn halves(self: Pin<Box<Self>>) -> (Source, Sink) {
        let (source, sink) = Pin::into_inner(self).into_split();
        (Box::pin(source), Box::pin(sink))
    }
}

/// The halves of what has none of its own.
fn split(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> (Source, Sink) {
    let (source, sink) = tokio::io::split(stream);
    (Box::pin(source), Box::pin(sink))
}

impl Duplex for TcpStream {
    fn halves(self: Pin<Box<Self>>) -> (Source, Sink) {
        split(*Pin::into_inner(self))
    }
}

impl Duplex for Join<Stdin, Stdout> {
    fn halves(self: Pin<Box<Self>>) -> (Source, Sink) {
        split(*Pin::into_inner(self))
    }
}

// The kernel's vsock copies what it is given.
#[cfg(target_os = "linux")]
impl Duplex for tokio_vsock::VsockStream {
    fn halves(self: Pin<Box<Self>>) -> (Source, Sink) {
        split(*Pin::into_inner(self))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_unix_socket_takes_a_files_pages_as_far_as_there_are_any() {
        let content: Vec<u8> = (0..20_000).map(|at| (at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream: BoxStream = Box::pin(ours);
        let (_source, sink) = stream.halves();
        assert_eq!(sink.send_file(&file, 5000, 10_000), 10_000);
        let mut got = vec![0; 10_000];
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(got, content[5000..15_000]);
        assert_eq!(sink.send_file(&file, 20_000, 1), 0, "nothing behind the end");
        drop(theirs);
        assert_eq!(sink.send_file(&file, 0, 1), 0, "nobody reads: an error, and no signal");
    }

    #[tokio::test]
    async fn what_takes_no_pages_says_so() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let (_source, sink) = split(ours);
        assert_eq!(sink.send_file(&tempfile::tempfile().unwrap(), 0, 1), 0);
    }
}
