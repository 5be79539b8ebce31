//! `config.toml`: what the user set for every command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::store::{CacheSize, UpstreamSpec};

/// The file's content. What is not in it has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where images and objects come from that the local store does not have, in the order in which they are asked.
    /// None if the file does not say, which is not the same as an empty list.
    #[serde(rename = "upstream")]
    pub upstreams: Option<Vec<UpstreamSpec>>,
    /// The cache of what came from there.
    #[serde(default)]
    pub cache: CacheSettings,
}

/// The table `[cache]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// How large it may grow.
    #[serde(default)]
    pub size: CacheSize,
}

impl Settings {
    /// The settings in `$XDG_CONFIG_HOME/lazyroot/config.toml` (`~/.config` if that is not set); the defaults if there
    /// is no such file.
    ///
    /// # Errors
    /// If the file cannot be read or something in it makes no sense; the message has the line.
    pub fn load() -> Result<Self> {
        let Some(path) = Self::path() else { return Ok(Self::default()) };
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            text => Self::parse(&text.with_context(|| format!("cannot read {}", path.display()))?, &path),
        }
    }

    /// Where the file is looked for.
    pub fn path() -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
        Some(base.join("lazyroot/config.toml"))
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start].matches('\n').count());
            let line = line.map(|line| format!(":{line}")).unwrap_or_default();
            anyhow!("{}{line}: {}", path.display(), error.message())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{UpstreamAddress, UpstreamCompression};

    fn parse(text: &str) -> Result<Settings> {
        Settings::parse(text, Path::new("/c/config.toml"))
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        assert_eq!(parse("").unwrap(), Settings::default());
        assert_eq!(parse("").unwrap().upstreams, None);
        assert_eq!(parse("upstream = []").unwrap().upstreams, Some(vec![]));
        let settings = parse(
            "[[upstream]]\nurl = 'ssh://me@host:22'\nprogram = 'sudo lazyroot'\ncompression = 'never'\n\
             [[upstream]]\nurl = 's3://bucket/prefix'\n[cache]\nsize = '5%'\n",
        )
        .unwrap();
        assert_eq!(settings.cache.size, CacheSize::Percent(5));
        let upstreams = settings.upstreams.unwrap();
        assert_eq!(upstreams[0].compression, UpstreamCompression::Never);
        assert_eq!(upstreams[0].program, "sudo lazyroot");
        assert_eq!(upstreams[1].url, UpstreamAddress::Bucket("s3://bucket/prefix".into()));
        assert_eq!(upstreams[1].program, "lazyroot");
    }

    #[test]
    fn an_error_says_the_line_and_what_is_wrong_there() {
        for (text, line, words) in [
            ("[cache]\nsize = '5%'\nsise = 3\n", 3, "unknown field `sise`"),
            ("\n[[upstream]]\nurl = 'build.example'\n", 3, "ssh://[USER@]HOST"),
            ("[cache]\n\nsize = '0%'\n", 3, "a share of the disk"),
            ("[[upstream]]\nurl = 'unix:/x'\ncompression = 'yes'\n", 3, "unknown variant `yes`"),
            ("[[upstream]]\nprogram = 'x'\n", 1, "missing field `url`"),
            ("x = \n", 1, ""),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/c/config.toml:{line}: ")), "{text}: {error}");
            assert!(error.contains(words) && error.lines().count() == 1, "{text}: {error}");
        }
    }
}
