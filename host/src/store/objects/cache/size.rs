//! How large the cache may grow.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::human::parse_bytes;

/// A bound for the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum CacheSize {
    /// So many bytes; 0 is no cache.
    Bytes(u64),
    /// Per cent of the file system that it is on, 1 to 100.
    Percent(u8),
}

impl Default for CacheSize {
    fn default() -> Self {
        Self::Percent(10)
    }
}

impl CacheSize {
    /// The bound in bytes for a cache in `dir`, which exists.
    ///
    /// # Errors
    /// If the file system does not say how large it is.
    pub fn bytes(&self, dir: &Path) -> Result<u64> {
        match *self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Percent(percent) => {
                let disk = rustix::fs::statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
                Ok(disk.f_blocks.saturating_mul(disk.f_frsize) / 100 * u64::from(percent))
            }
        }
    }
}

impl FromStr for CacheSize {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent),
            None => parse_bytes(text).map(Self::Bytes),
        };
        match parsed {
            Some(size) => Ok(size),
            None => bail!("'{text}' is no cache size: write a share of the disk (10%), an amount (20G, 500M), or 0"),
        }
    }
}

impl TryFrom<String> for CacheSize {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_the_usual_spellings() {
        for (text, size) in [
            ("10%", CacheSize::Percent(10)),
            ("0", CacheSize::Bytes(0)),
            ("500M", CacheSize::Bytes(500 << 20)),
            ("20GiB", CacheSize::Bytes(20 << 30)),
            ("1t", CacheSize::Bytes(1 << 40)),
        ] {
            assert_eq!(text.parse::<CacheSize>().unwrap(), size);
        }
        for text in ["", "0%", "101%", "-1", "x", "10X", "99999999T"] {
            assert!(text.parse::<CacheSize>().is_err(), "{text}");
        }
    }
}
