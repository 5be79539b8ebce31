//! Ports that are published: which end of the host leads to which of a guest.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

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
