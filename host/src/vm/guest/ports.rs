//! Ports of the host that lead to something in a guest: over streams to its agent, so that it takes no network in the
//! guest, and no port there that another VM could want.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use lazyroot_proto::service::{MAX_DATA, Service, ServiceFrame, Target};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::serve::{Accept, BoxStream, Endpoint, GuestAgent, Listener, read_frame, serve_each, write_frame};

/// Connections of one port at a time; further ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 256;

/// What `-p HOST:GUEST` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMap {
    /// Where the host listens.
    pub host: HostEnd,
    /// What it leads to.
    pub guest: GuestEnd,
}

/// Where the host listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostEnd {
    /// At this address; port 0 takes any that is free.
    Tcp(SocketAddr),
    /// At this unix socket.
    Unix(PathBuf),
}

/// What listens in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestEnd {
    /// This TCP port, at 127.0.0.1.
    Tcp(u16),
    /// This unix socket.
    Unix(String),
}

impl FromStr for PortMap {
    type Err = anyhow::Error;

    /// `[ADDRESS:]PORT:GUEST` or `/PATH:GUEST`, where GUEST is a port or an absolute path.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            format!("'{text}' maps no port: use [ADDRESS:]PORT:GUEST or /PATH:GUEST, with a port or a /path as GUEST")
        };
        let (host, guest) = text.rsplit_once(':').with_context(wrong)?;
        let guest = match guest.parse() {
            Ok(0) => bail!("{}", wrong()),
            Ok(port) => GuestEnd::Tcp(port),
            Err(_) if guest.starts_with('/') => GuestEnd::Unix(guest.to_owned()),
            Err(_) => bail!("{}", wrong()),
        };
        let host = if host.starts_with('/') {
            HostEnd::Unix(host.into())
        } else if let Ok(port) = host.parse() {
            // This machine's own programs only, unless an address says more.
            HostEnd::Tcp((Ipv4Addr::LOCALHOST, port).into())
        } else {
            HostEnd::Tcp(host.parse().with_context(wrong)?)
        };
        Ok(Self { host, guest })
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostEnd::Tcp(address) => write!(f, "{address}")?,
            HostEnd::Unix(path) => write!(f, "{}", path.display())?,
        }
        match &self.guest {
            GuestEnd::Tcp(port) => write!(f, " -> {port}"),
            GuestEnd::Unix(path) => write!(f, " -> {path}"),
        }
    }
}

/// A port that is bound, and not served yet.
pub struct Bound {
    /// What it maps, with the port that was taken.
    pub map: PortMap,
    listener: Listening,
}

enum Listening {
    Tcp(TcpListener),
    Unix(Listener),
}

impl Accept for Listening {
    type Stream = BoxStream;

    async fn accept(&mut self) -> io::Result<BoxStream> {
        match self {
            Listening::Tcp(listener) => Ok(Box::pin(Accept::accept(listener).await?)),
            Listening::Unix(listener) => listener.accept().await,
        }
    }
}

impl Bound {
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
                Listening::Tcp(listener)
            }
            HostEnd::Unix(path) => Listening::Unix(Listener::bind(&Endpoint::Unix(path.clone()))?),
        };
        Ok(Self { map, listener })
    }

    /// Brings connections to the guest behind `hub`, for ever. Dropping the future ends them.
    pub async fn serve(self, hub: Arc<GuestAgent>) {
        let map = Arc::new(self.map);
        serve_each(self.listener, MAX_CONNECTIONS, |stream| {
            let (hub, map) = (hub.clone(), map.clone());
            async move {
                if let Err(error) = connect(&hub, &map.guest, stream).await {
                    tracing::info!("{map}: {error:#}");
                }
            }
        })
        .await;
    }
}

/// One connection, from what came in here to what listens in the guest.
async fn connect(hub: &GuestAgent, target: &GuestEnd, local: BoxStream) -> Result<()> {
    let target = match target {
        GuestEnd::Tcp(port) => Target::Tcp(*port),
        GuestEnd::Unix(path) => Target::Unix(path.clone().into()),
    };
    let (mut from_guest, mut to_guest) = tokio::io::split(hub.open_stream().await?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_they_are_written() {
        let parse = |text: &str| text.parse::<PortMap>().ok();
        let tcp = |address: &str, guest| PortMap { host: HostEnd::Tcp(address.parse().unwrap()), guest };
        assert_eq!(parse("8080:80"), Some(tcp("127.0.0.1:8080", GuestEnd::Tcp(80))));
        assert_eq!(parse("0.0.0.0:0:/run/s"), Some(tcp("0.0.0.0:0", GuestEnd::Unix("/run/s".into()))));
        assert_eq!(parse("[::1]:5:6"), Some(tcp("[::1]:5", GuestEnd::Tcp(6))));
        let unix = PortMap { host: HostEnd::Unix("/tmp/s".into()), guest: GuestEnd::Tcp(22) };
        assert_eq!(parse("/tmp/s:22"), Some(unix));
        for text in ["", "80", "80:", ":80", "80:0", "80:x", "x:80", "80:70000", "70000:80", "localhost:1:2"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
