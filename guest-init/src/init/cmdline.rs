//! What the host says on the kernel command line: the root of trust, and how to boot.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use lazyroot_proto::ObjectId;
use lazyroot_proto::frame::DEFAULT_PORT;

use crate::agent::mode::Mode;
use crate::mount::Trust;

/// The host's instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// `lazyroot.probe`: say that this kernel runs, and power off.
    Probe,
    /// Boot an image.
    Boot(Boot),
}

/// How to boot an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// `lazyroot.manifest=` and `lazyroot.index=`.
    pub trust: Trust,
    /// `lazyroot.port=`: the vsock port of the host's server.
    pub port: u32,
    /// `lazyroot.mode=`.
    pub mode: Mode,
    /// `lazyroot.hostname=`, if given.
    pub hostname: Option<String>,
    /// `lazyroot.settings`: whether the host has settings for us.
    pub settings: bool,
    /// `lazyroot.upper=disk`: whether changes go to a disk.
    pub disk: bool,
}

impl Instructions {
    /// Reads a kernel command line; words that are not ours are left to others.
    ///
    /// # Errors
    /// If one of our words is missing or makes no sense.
    pub fn parse(cmdline: &str) -> Result<Self> {
        let words: HashMap<&str, &str> = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("lazyroot."))
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .collect();
        if words.contains_key("probe") {
            return Ok(Self::Probe);
        }
        let digest = |name: &str| -> Result<ObjectId> {
            let text = words.get(name).with_context(|| format!("the kernel command line has no lazyroot.{name}="))?;
            text.parse().with_context(|| format!("lazyroot.{name}={text} on the kernel command line"))
        };
        let port = match words.get("port") {
            None => DEFAULT_PORT,
            Some(text) => {
                text.parse().with_context(|| format!("lazyroot.port={text} on the kernel command line is no port"))?
            }
        };
        let mode = match words.get("mode").copied() {
            None | Some("init") => Mode::Init,
            Some("agent") => Mode::Agent,
            Some(other) => bail!("lazyroot.mode={other} on the kernel command line: expected init or agent"),
        };
        Ok(Self::Boot(Boot {
            trust: Trust { manifest: digest("manifest")?, index: digest("index")? },
            port,
            mode,
            hostname: words.get("hostname").map(|name| (*name).to_owned()),
            settings: words.contains_key("settings"),
            disk: match words.get("upper").copied() {
                None => false,
                Some("disk") => true,
                Some(other) => bail!("lazyroot.upper={other} on the kernel command line: expected disk"),
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_words_are_understood_and_others_left_alone() {
        let id = "ab".repeat(32);
        let line = format!("console=ttyS0 lazyroot.manifest=sha256:{id} lazyroot.index={id} lazyroot.mode=agent quiet");
        let Instructions::Boot(boot) = Instructions::parse(&line).unwrap() else { panic!("not a probe") };
        assert_eq!((boot.mode, boot.port, boot.trust.manifest), (Mode::Agent, DEFAULT_PORT, id.parse().unwrap()));
        assert_eq!(Instructions::parse("quiet lazyroot.probe").unwrap(), Instructions::Probe);
    }

    #[test]
    fn a_missing_or_wrong_root_of_trust_is_an_error_that_names_it() {
        let id = "ab".repeat(32);
        for (line, named) in [
            ("quiet".to_owned(), "lazyroot.manifest"),
            (format!("lazyroot.manifest={id}"), "lazyroot.index"),
            (format!("lazyroot.manifest=xyz lazyroot.index={id}"), "lazyroot.manifest=xyz"),
            (format!("lazyroot.manifest={id} lazyroot.index={id} lazyroot.mode=x"), "lazyroot.mode=x"),
        ] {
            let error = format!("{:#}", Instructions::parse(&line).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
