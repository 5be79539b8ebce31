//! The argument `IMAGE[:/PATH]` of the verbs that look into an image.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::builder::{OsStringValueParser, TypedValueParser};
use lazyroot_proto::ObjectId;

use crate::store::{Store, Tree, TreeEntry};
use crate::text::printable_name;

/// `IMAGE[:/PATH]`: an image and a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePath {
    /// The name or digest.
    pub image: String,
    /// Absolute in the image.
    pub path: PathBuf,
}

impl ImagePath {
    /// The first `:/` ends the image: no name and no digest has one.
    fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let end = bytes.windows(2).position(|pair| pair == b":/").unwrap_or(bytes.len());
        let image = std::str::from_utf8(&bytes[..end]).map_err(|_| "the image's name is no text".to_owned())?;
        let path = match bytes.get(end + 1..) {
            Some(path) => path.to_vec(),
            None => b"/".to_vec(),
        };
        Ok(Self { image: image.to_owned(), path: OsString::from_vec(path).into() })
    }

    /// Opens the image.
    ///
    /// # Errors
    /// If there is no such image, or its manifest is damaged.
    pub fn open(&self, store: &Store) -> Result<(ObjectId, Tree)> {
        store.look_into(&self.image)
    }

    /// The file at the path.
    ///
    /// # Errors
    /// If there is none.
    pub fn entry(&self, tree: &Tree) -> Result<TreeEntry> {
        let entry = tree.entry(&self.path)?;
        entry.with_context(|| format!("image {} has no {}", self.image, path_text(&self.path)))
    }
}

/// The parser for clap: arguments may be any bytes.
pub fn image_path() -> impl TypedValueParser<Value = ImagePath> {
    OsStringValueParser::new().try_map(|text| ImagePath::parse(&text))
}

/// A path as one line of text.
pub fn path_text(path: &Path) -> String {
    printable_name(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_an_image_and_a_path() {
        let parse = |text: &str| ImagePath::parse(OsStr::new(text)).unwrap();
        let place = |image: &str, path: &str| ImagePath { image: image.into(), path: path.into() };
        assert_eq!(parse("debian"), place("debian", "/"));
        assert_eq!(parse("debian:trixie"), place("debian:trixie", "/"));
        assert_eq!(parse("debian:/etc"), place("debian", "/etc"));
        assert_eq!(parse("localhost:5000/a/b:v1:/etc/x:/y"), place("localhost:5000/a/b:v1", "/etc/x:/y"));
        assert_eq!(parse("sha256:00:/"), place("sha256:00", "/"));
        let odd = ImagePath::parse(OsStr::from_bytes(b"a:/\xff")).unwrap();
        assert_eq!(odd.path.as_os_str().as_bytes(), b"/\xff");
    }
}
