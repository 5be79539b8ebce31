//! Where guests come in: unix sockets and, where the host has it, AF_VSOCK.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use lazyroot_proto::frame::DEFAULT_PORT;
use tokio::net::UnixListener;

use crate::serve::wire::stream::BoxStream;

/// The longest path that fits a unix socket's address on every system (104 bytes on macOS, 108 on Linux, both
/// with a final NUL), in bytes.
pub const MAX_SOCKET_PATH: usize = 103;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:PATH`: a unix socket; also one of vfkit's per-port sockets.
    Unix(PathBuf),
    /// `vsock:PORT`: AF_VSOCK, any guest of this host.
    Vsock(u32),
    /// AF_VSOCK, the one guest with this address.
    VsockFrom {
        /// The host's port.
        port: u32,
        /// The guest's context id.
        cid: u32,
    },
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    /// `unix:PATH`, `vsock:[PORT]`, or `hybrid:PATH[:PORT]`, the socket `PATH_PORT` where Firecracker, Cloud
    /// Hypervisor and vhost-device-vsock bring a guest's connections to PORT.
    fn from_str(text: &str) -> Result<Self> {
        let port = |text: &str| {
            text.parse().with_context(|| format!("'{text}' is not a vsock port: expected a number below 2^32"))
        };
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
            Some(("vsock", "")) => Ok(Endpoint::Vsock(DEFAULT_PORT)),
            Some(("vsock", number)) => Ok(Endpoint::Vsock(port(number)?)),
            Some(("hybrid", path)) if !path.is_empty() => {
                let (path, port) = match path.rsplit_once(':') {
                    Some((path, number)) => (path, port(number)?),
                    None => (path, DEFAULT_PORT),
                };
                Ok(Endpoint::Unix(format!("{path}_{port}").into()))
            }
            _ => bail!("'{text}' is no address to listen on: use unix:PATH, hybrid:PATH[:PORT] or vsock:[PORT]"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Vsock(port) => write!(f, "vsock:{port}"),
            Endpoint::VsockFrom { port, cid } => write!(f, "vsock:{port} for guest {cid}"),
        }
    }
}

/// A bound endpoint. A unix socket is removed when it is dropped.
pub struct Listener(Inner);

enum Inner {
    Unix {
        listener: UnixListener,
        _remove: RemoveOnDrop,
    },
    #[cfg(target_os = "linux")]
    Vsock {
        listener: tokio_vsock::VsockListener,
        only: Option<u32>,
    },
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds `endpoint`; must be called inside a tokio runtime. A socket file that nobody listens on any more
    /// (its server crashed) is replaced.
    ///
    /// # Errors
    /// If the address is in use, too long, or not to be had on this machine.
    pub fn bind(endpoint: &Endpoint) -> Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => Self::bind_unix(path),
            Endpoint::Vsock(port) => Self::bind_vsock(*port, None),
            Endpoint::VsockFrom { port, cid } => Self::bind_vsock(*port, Some(*cid)),
        }
    }

    #[cfg(target_os = "linux")]
    fn bind_vsock(port: u32, only: Option<u32>) -> Result<Self> {
        let address = tokio_vsock::VsockAddr::new(tokio_vsock::VMADDR_CID_ANY, port);
        let listener = tokio_vsock::VsockListener::bind(address).with_context(|| match port {
            0..1024 => format!("cannot listen on vsock port {port}: ports below 1024 need root"),
            _ => format!("cannot listen on vsock port {port}: is it taken, or does this kernel lack vsock?"),
        })?;
        Ok(Self(Inner::Vsock { listener, only }))
    }

    #[cfg(not(target_os = "linux"))]
    fn bind_vsock(_port: u32, _only: Option<u32>) -> Result<Self> {
        bail!("this system has no AF_VSOCK: use unix:PATH, which vfkit connects to")
    }

    fn bind_unix(path: &Path) -> Result<Self> {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            bail!(
                "the socket path {} is longer than {MAX_SOCKET_PATH} bytes: choose a shorter one (XDG_RUNTIME_DIR or \
                 LAZYROOT_HOME where lazyroot chose it)",
                path.display()
            );
        }
        if let Ok(meta) = std::fs::symlink_metadata(path) {
            if !meta.file_type().is_socket() {
                bail!("cannot listen on {}: there is a file that is no socket", path.display());
            }
            match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
                }
                _ => bail!("cannot listen on {}: another process does already", path.display()),
            }
        }
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        let remove = RemoveOnDrop(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot make {} private", path.display()))?;
        Ok(Self(Inner::Unix { listener, _remove: remove }))
    }

    /// The next connection.
    ///
    /// # Errors
    /// If the system refuses one, most likely for want of file descriptors; a later one may come.
    pub async fn accept(&mut self) -> io::Result<BoxStream> {
        match &mut self.0 {
            Inner::Unix { listener, .. } => Ok(Box::pin(listener.accept().await?.0)),
            #[cfg(target_os = "linux")]
            Inner::Vsock { listener, only } => loop {
                let (stream, peer) = listener.accept().await?;
                if only.is_none_or(|cid| cid == peer.cid()) {
                    return Ok(Box::pin(stream));
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse() {
        let parse = |text: &str| text.parse::<Endpoint>().ok();
        assert_eq!(parse("unix:/run/s"), Some(Endpoint::Unix("/run/s".into())));
        assert_eq!(parse("hybrid:/run/v:5000"), Some(Endpoint::Unix("/run/v_5000".into())));
        assert_eq!(parse("hybrid:/run/v"), Some(Endpoint::Unix(format!("/run/v_{DEFAULT_PORT}").into())));
        assert_eq!(parse("vsock:"), Some(Endpoint::Vsock(DEFAULT_PORT)));
        for text in ["", "unix:", "/run/s", "vsock:x", "hybrid:", "tcp:1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_in_use_is_refused_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(dir.path().join("s"));
        let first = Listener::bind(&endpoint).unwrap();
        assert!(Listener::bind(&endpoint).is_err());
        drop(first);
        assert!(!dir.path().join("s").exists());
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap());
        Listener::bind(&endpoint).unwrap();
    }
}
