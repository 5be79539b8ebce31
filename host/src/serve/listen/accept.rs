//! Taking in connections, wherever they come in.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::listener::Listener;
use crate::serve::wire::stream::BoxStream;

/// Pause after a failed accept: out of file descriptors, most likely, which passes.
const PAUSE: Duration = Duration::from_millis(100);

/// Something that connections come in at.
pub trait Accept: Send {
    /// A connection.
    type Stream: Send;

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// If the system refuses one; a later one may come.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for Listener {
    type Stream = BoxStream;

    fn accept(&mut self) -> impl Future<Output = io::Result<BoxStream>> + Send {
        Listener::accept(self)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // What is sent is as large as it gets: waiting for more would only delay it.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Gives each connection to `serve` in a task of its own, for ever; no more than `most` at a time, further ones wait in
/// the system's queue. Dropping the future ends them.
pub async fn serve_each<A: Accept, F>(mut listener: A, most: usize, mut serve: impl FnMut(A::Stream) -> F + Send)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = listener.accept(), if connections.len() < most => match stream {
                Ok(stream) => {
                    connections.spawn(serve(stream));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => (),
        }
    }
}
