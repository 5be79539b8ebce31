//! Ports of the host that lead to something in a guest: over streams to its agent, so that it takes no network in the
//! guest, and no port there that another VM could want.

use std::io;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lazyroot_proto::service::{MAX_DATA, Service, ServiceFrame, Target};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::serve::{Accept, BoxStream, Endpoint, GuestAgent, Listener, read_frame, serve_each, write_frame};
use crate::vm::instance::port_map::{GuestEnd, HostEnd, PortMap};

/// Connections of one port at a time; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 256;

/// A port that is bound, and not served yet.
pub struct PortForward {
    /// What it maps, with the port that was taken.
    pub map: PortMap,
    listener: HostListener,
}

enum HostListener {
    Tcp(TcpListener),
    Unix(Listener),
}

impl Accept for HostListener {
    type Stream = BoxStream;

    async fn accept(&mut self) -> io::Result<BoxStream> {
        match self {
            HostListener::Tcp(listener) => Ok(Box::pin(Accept::accept(listener).await?)),
            HostListener::Unix(listener) => listener.accept().await,
        }
    }
}

impl PortForward {
    /// Binds the host's end; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If it is taken, or not to be had.
    pub fn bind(mut map: PortMap) -> Result<Self> {
        let listener = match &mut map.host {
            HostEnd::Tcp(address) => {
                let bind = || {
                    let listener = std::net::TcpListener::bind(*address)?;
                    listener.set_nonblocking(true)?;
                    let bound = listener.local_addr()?;
                    Ok::<_, std::io::Error>((TcpListener::from_std(listener)?, bound))
                };
                let (listener, bound) = bind().with_context(|| format!("cannot listen on {address}"))?;
                *address = bound;
                HostListener::Tcp(listener)
            }
            HostEnd::Unix(path) => HostListener::Unix(Listener::bind(&Endpoint::Unix(path.clone()))?),
        };
        Ok(Self { map, listener })
    }

    /// Brings connections to the guest behind `agent`, for ever. Dropping the future ends them.
    pub async fn serve(self, agent: Arc<GuestAgent>) {
        let map = Arc::new(self.map);
        serve_each(self.listener, MAX_CONNECTIONS, |stream| {
            let (agent, map) = (agent.clone(), map.clone());
            async move {
                if let Err(error) = connect(&agent, &map.guest, stream).await {
                    tracing::info!("{map}: {error:#}");
                }
            }
        })
        .await;
    }
}

/// One connection, from what came in here to what listens in the guest.
async fn connect(agent: &GuestAgent, target: &GuestEnd, local: BoxStream) -> Result<()> {
    let target = match target {
        GuestEnd::Tcp(port) => Target::Tcp(*port),
        GuestEnd::Unix(path) => Target::Unix(path.clone().into()),
    };
    let (mut from_guest, mut to_guest) = tokio::io::split(agent.open_stream().await?);
    write_frame(&mut to_guest, &Service::Connect(target).encode()).await?;
    match next_frame(&mut from_guest).await? {
        ServiceFrame::Done => (),
        ServiceFrame::Failed(why) => bail!("the guest says: {}", crate::text::printable(&why)),
        ServiceFrame::Data(_) => bail!("the guest broke the protocol"),
    }
    let (from_local, to_local) = tokio::io::split(local);
    let inward = outgoing(from_local, to_guest);
    let outward = incoming(from_guest, to_local);
    // Each direction has its own end; a failure of one ends both.
    tokio::try_join!(inward, outward).map(|_| ())
}

async fn next_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<ServiceFrame> {
    let (header, payload) = read_frame(stream).await?;
    Ok(ServiceFrame::decode(header.kind, &payload)?)
}

async fn outgoing(mut local: impl AsyncRead + Unpin, mut guest: impl AsyncWrite + Unpin) -> Result<()> {
    let mut buffer = vec![0; MAX_DATA];
    loop {
        let len = local.read(&mut buffer).await?;
        write_frame(&mut guest, &ServiceFrame::Data(buffer[..len].to_vec()).encode()).await?;
        if len == 0 {
            return Ok(());
        }
    }
}

async fn incoming(mut guest: impl AsyncRead + Unpin, mut local: impl AsyncWrite + Unpin) -> Result<()> {
    loop {
        match next_frame(&mut guest).await? {
            ServiceFrame::Data(data) if data.is_empty() => return Ok(local.shutdown().await?),
            ServiceFrame::Data(data) => {
                local.write_all(&data).await?;
                local.flush().await?;
            }
            ServiceFrame::Done | ServiceFrame::Failed(_) => bail!("the guest broke the protocol"),
        }
    }
}
