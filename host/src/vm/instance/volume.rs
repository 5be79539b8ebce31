//! Folders of the host that a guest sees.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What `--volume HOST:GUEST[:ro]` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The host's folder.
    pub host: PathBuf,
    /// Where the guest sees it.
    pub guest: String,
    /// Whether the guest cannot change it.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rest, read_only) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        let (host, guest) = rest
            .rsplit_once(':')
            .with_context(|| format!("'{text}' shares no folder: use HOST:GUEST or HOST:GUEST:ro"))?;
        ensure!(guest.starts_with('/'), "'{guest}' is no absolute path in the guest");
        let host =
            std::fs::canonicalize(host).with_context(|| format!("cannot share {host}: is there such a folder?"))?;
        ensure!(host.is_dir(), "cannot share {}: it is no folder", host.display());
        Ok(Self { host, guest: guest.to_owned(), read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_as_they_are_written() {
        let parse = |text: &str| text.parse::<Volume>().ok().map(|volume| (volume.guest, volume.read_only));
        assert_eq!(parse("/:/mnt"), Some(("/mnt".into(), false)));
        assert_eq!(parse("/:/mnt:ro"), Some(("/mnt".into(), true)));
        for text in ["", "/", "/:mnt", "/no/such/folder:/mnt", "/etc/passwd:/mnt"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
