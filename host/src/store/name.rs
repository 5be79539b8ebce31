//! Names of images: `name[:tag]`, as podman writes them.
//!
//! Ours, and not `oci-spec`'s `Reference`: that one makes `docker.io/library/debian` of `debian`, takes digests, and knows
//! other bounds. Names are paths in a repository, so what is a name must not change.

use std::fmt;
use std::str::FromStr;

/// The longest name in bytes, its tag included: names are paths in the repository.
const MAX: usize = 255;

/// A valid name with its tag.
///
/// The name is one or more parts of `[a-z0-9][a-z0-9._-]*` between slashes, the first optionally followed by a
/// registry's port; the tag is `[A-Za-z0-9_][A-Za-z0-9._-]*` and `latest` if none is given. A name always has a
/// tag, so that `a` can never be a file where `a/b` needs a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName(String);

/// A text that is no image name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no image name: use lower-case letters, digits, '.', '_', '-' and '/', then optionally ':' and a tag")]
pub struct ParseNameError(String);

impl ImageName {
    /// `name:tag`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest valid name to any text, such as the name of a folder.
    pub(super) fn from_anything(text: &str) -> Self {
        let text: String = text
            .chars()
            .map(|c| match c.to_ascii_lowercase() {
                c @ ('a'..='z' | '0'..='9' | '.' | '_' | '-') => c,
                _ => '-',
            })
            .take(MAX / 2)
            .collect();
        let text = text.trim_start_matches(['.', '_', '-']);
        Self(format!("{}:latest", if text.is_empty() { "image" } else { text }))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let last_part = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[last_part..].find(':') {
            Some(colon) => (&text[..last_part + colon], &text[last_part + colon + 1..]),
            None => (text, "latest"),
        };
        let mut parts = name.split('/');
        let first = parts.next().unwrap_or_default();
        let first_is_valid = match first.split_once(':') {
            Some((host, port)) => is_part(host) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()),
            None => is_part(first),
        };
        if first_is_valid && parts.all(is_part) && is_tag(tag) && name.len() + tag.len() < MAX {
            Ok(Self(format!("{name}:{tag}")))
        } else {
            Err(ParseNameError(text.to_owned()))
        }
    }
}

fn is_part(part: &str) -> bool {
    let valid = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    part.bytes().all(valid) && part.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

fn is_tag(tag: &str) -> bool {
    let valid = |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    tag.bytes().all(valid) && tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_and_keep_it() {
        for (text, full) in [
            ("debian", "debian:latest"),
            ("debian:13", "debian:13"),
            ("localhost/my_os.v2:V1", "localhost/my_os.v2:V1"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a:t", "localhost:5000/a:t"),
        ] {
            assert_eq!(text.parse::<ImageName>().unwrap().as_str(), full);
        }
    }

    #[test]
    fn what_could_leave_the_folder_or_hide_is_no_name() {
        let long = "a".repeat(MAX);
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "../a",
            "a/..",
            "a/.b",
            ".a",
            "-a",
            "A",
            "a b",
            "a:",
            "a:.x",
            "a:b:c",
            "a:b/c",
            "a@sha256",
            "é",
            "a\n",
            "localhost:x/a",
            &long,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn anything_can_be_made_a_name() {
        for (text, name) in [("My Root FS", "my-root-fs"), ("..", "image"), ("", "image"), ("x.tar", "x.tar")] {
            let name = format!("{name}:latest");
            assert_eq!(ImageName::from_anything(text).as_str(), name);
            assert_eq!(name.parse(), Ok(ImageName::from_anything(text)));
        }
    }
}
