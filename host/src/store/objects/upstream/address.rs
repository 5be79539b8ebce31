//! How upstreams are written on the command line and in `config.toml`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Address {
    /// `ssh://[USER@]HOST[:PORT]`: a lazyroot on another machine.
    Ssh {
        /// `[USER@]HOST`, as ssh takes it; also a `Host` of `ssh_config`.
        destination: String,
        /// The port, if not ssh's own choice.
        port: Option<u16>,
    },
    /// `podman-machine[:NAME]`: the lazyroot in a podman machine.
    PodmanMachine(Option<String>),
    /// `command:COMMAND`: a shell command whose standard input and output lead to `lazyroot serve --stdio`.
    Command(String),
    /// `unix:PATH`: the socket of a `lazyroot serve --peer`.
    Unix(PathBuf),
    /// `s3://BUCKET[/PREFIX]`, `gs://`, `az://` or `file:///PATH`: what `lazyroot store push` filled.
    Bucket(String),
}

/// Schemes of [`Address::Bucket`].
const BUCKETS: &[&str] = &["s3://", "gs://", "az://", "file:///"];

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(rest) = text.strip_prefix("ssh://") {
            let rest = rest.trim_end_matches('/');
            let (destination, port) = match rest.rsplit_once(':') {
                Some((destination, port)) if !port.contains(']') => {
                    let port = port.parse().with_context(|| format!("'{port}' in '{text}' is no port number"))?;
                    (destination, Some(port))
                }
                _ => (rest, None),
            };
            let well_formed = !destination.is_empty() && !destination.contains(['/', ' ']);
            // A host that starts with a hyphen would be an option of ssh's.
            let host = destination.rsplit('@').next().unwrap_or_default();
            ensure!(
                well_formed && !destination.starts_with('-') && !host.starts_with('-') && !host.is_empty(),
                "'{text}' names no host: write ssh://[USER@]HOST[:PORT]"
            );
            return Ok(Self::Ssh { destination: destination.to_owned(), port });
        }
        if BUCKETS.iter().any(|scheme| text.starts_with(scheme) && text.len() > scheme.len()) {
            return Ok(Self::Bucket(text.trim_end_matches('/').to_owned()));
        }
        match text.split_once(':') {
            None if text == "podman-machine" => Ok(Self::PodmanMachine(None)),
            Some(("podman-machine", name)) if !name.is_empty() && !name.starts_with('-') => {
                Ok(Self::PodmanMachine(Some(name.to_owned())))
            }
            Some(("command", command)) if !command.trim().is_empty() => Ok(Self::Command(command.to_owned())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => bail!(
                "'{text}' is no upstream: use ssh://[USER@]HOST[:PORT], podman-machine[:NAME], command:COMMAND, \
                 unix:PATH, s3://BUCKET[/PREFIX] or file:///PATH"
            ),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh { destination, port: None } => write!(f, "ssh://{destination}"),
            Self::Ssh { destination, port: Some(port) } => write!(f, "ssh://{destination}:{port}"),
            Self::PodmanMachine(None) => f.write_str("podman-machine"),
            Self::PodmanMachine(Some(name)) => write!(f, "podman-machine:{name}"),
            Self::Command(command) => write!(f, "command:{command}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Bucket(url) => f.write_str(url),
        }
    }
}

/// Whether another lazyroot compresses what it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// While the link is measured to be slower than compressing is.
    #[default]
    Auto,
    /// From the first byte.
    Always,
    /// Not at all.
    Never,
}

/// An upstream and how to use it: one `[[upstream]]` of `config.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Where it is.
    pub url: Address,
    /// The lazyroot program there; of `ssh://` and `podman-machine` only.
    #[serde(default = "default_program")]
    pub program: String,
    /// Whether it compresses; of other lazyroots only.
    #[serde(default)]
    pub compression: Compression,
}

impl Spec {
    /// An upstream used in the usual way.
    pub fn new(url: Address) -> Self {
        Self { url, program: default_program(), compression: Compression::default() }
    }
}

fn default_program() -> String {
    "lazyroot".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print_as_they_were_written() {
        for text in [
            "ssh://build.example",
            "ssh://me@build.example:2222",
            "ssh://[::1]",
            "ssh://[::1]:22",
            "podman-machine",
            "podman-machine:big",
            "command:sudo lazyroot serve --stdio",
            "unix:/run/lazyroot/peer",
            "s3://bucket/a/b",
            "file:///srv/images",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_or_could_be_an_option_is_refused() {
        for text in [
            "",
            "build.example",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://me@-x",
            "ssh://host:port",
            "podman-machine:",
            "podman-machine:-x",
            "command: ",
            "unix:",
            "s3://",
            "file://relative",
            "http://host/",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
