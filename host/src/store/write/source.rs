//! Sources of images.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::store::name::ImageName;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `dir:PATH`: a folder that is a root file system. All metadata is kept as it is.
    Directory(PathBuf),
    /// `oci:PATH[:TAG]`: an OCI image layout.
    OciLayout(String),
    /// `oci-archive:PATH[:TAG]`: an OCI image layout in a tar file.
    OciArchive(String),
    /// `containers-storage:[[DRIVER@]ROOT]NAME`: podman's images on this machine, or those below ROOT. Their
    /// files are shared, not copied, where the file system and the user's rights allow it.
    ContainersStorage {
        /// The store's folder (podman's `graphRoot`), if not the user's or the system's own.
        root: Option<PathBuf>,
        /// Name or id of the image.
        image: String,
    },
    /// `docker://REF`: a registry.
    Registry(String),
}

/// A text that names no source.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseSourceError {
    /// A path alone.
    #[error("'{0}' is a {1}: did you mean {2}{0}?")]
    BarePath(String, &'static str, &'static str),
    /// A name alone.
    #[error(
        "'{0}' does not say where the image is: did you mean containers-storage:{0} (podman's images) or \
         docker://{0} (a registry)? Other sources are dir:PATH, oci:PATH[:TAG] and oci-archive:PATH[:TAG]"
    )]
    BareName(String),
    /// Nothing after the prefix.
    #[error("'{0}' names no image")]
    Empty(String),
    /// `containers-storage:[` without `]`, or no absolute path between them.
    #[error("'{0}' is malformed: write containers-storage:[/path/of/the/store]NAME")]
    StorageRoot(String),
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        let some = |rest: &str| match rest {
            "" => Err(ParseSourceError::Empty(text.to_owned())),
            rest => Ok(rest.to_owned()),
        };
        if let Some(path) = text.strip_prefix("dir:") {
            Ok(Self::Directory(some(path)?.into()))
        } else if let Some(path) = text.strip_prefix("oci:") {
            Ok(Self::OciLayout(some(path)?))
        } else if let Some(path) = text.strip_prefix("oci-archive:") {
            Ok(Self::OciArchive(some(path)?))
        } else if let Some(reference) = text.strip_prefix("docker://") {
            Ok(Self::Registry(some(reference)?))
        } else if let Some(image) = text.strip_prefix("containers-storage:") {
            let Some(rest) = image.strip_prefix('[') else {
                return Ok(Self::ContainersStorage { root: None, image: some(image)? });
            };
            // containers/storage writes `driver@graph_root+run_root:options`; only the root matters to a reader.
            let malformed = || ParseSourceError::StorageRoot(text.to_owned());
            let (place, image) = rest.split_once(']').ok_or_else(malformed)?;
            let root = place.split_once('@').map_or(place, |(_, root)| root);
            let root = root.split('+').next().unwrap_or_default();
            if !root.starts_with('/') {
                return Err(malformed());
            }
            Ok(Self::ContainersStorage { root: Some(root.into()), image: some(image)? })
        } else {
            Err(bare(text))
        }
    }
}

/// What someone may have meant who gave no prefix.
fn bare(text: &str) -> ParseSourceError {
    let path = Path::new(text);
    if path.join("oci-layout").is_file() {
        ParseSourceError::BarePath(text.to_owned(), "folder with an OCI image layout", "oci:")
    } else if path.is_dir() {
        ParseSourceError::BarePath(text.to_owned(), "folder", "dir:")
    } else if path.is_file() {
        ParseSourceError::BarePath(text.to_owned(), "file", "oci-archive:")
    } else {
        ParseSourceError::BareName(text.to_owned())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::OciLayout(path) => write!(f, "oci:{path}"),
            Self::OciArchive(path) => write!(f, "oci-archive:{path}"),
            Self::ContainersStorage { root: None, image } => write!(f, "containers-storage:{image}"),
            Self::ContainersStorage { root: Some(root), image } => {
                write!(f, "containers-storage:[{}]{image}", root.display())
            }
            Self::Registry(reference) => write!(f, "docker://{reference}"),
        }
    }
}

impl Source {
    /// The same with a path that means the same from every folder.
    pub fn absolute(&self) -> Self {
        let text = |path: &str| std::path::absolute(path).ok().and_then(|path| path.to_str().map(str::to_owned));
        match self {
            Self::Directory(path) => Self::Directory(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            Self::OciLayout(path) => Self::OciLayout(text(path).unwrap_or_else(|| path.clone())),
            Self::OciArchive(path) => Self::OciArchive(text(path).unwrap_or_else(|| path.clone())),
            other => other.clone(),
        }
    }

    /// The name an image from here gets if none is asked for.
    pub fn default_name(&self) -> ImageName {
        match self {
            Self::Directory(path) => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                ImageName::from_anything(&name)
            }
            Self::OciLayout(path) | Self::OciArchive(path) => {
                let (path, tag) = split_tag(path);
                let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
                let name = ImageName::from_anything(name.trim_end_matches(".tar"));
                let tagged = tag.and_then(|tag| name.as_str().replace(":latest", &format!(":{tag}")).parse().ok());
                tagged.unwrap_or(name)
            }
            Self::ContainersStorage { image: reference, .. } | Self::Registry(reference) => {
                // A digest can be no tag: `name@sha256:0123...` becomes `name:sha256-0123456789ab`.
                let name = match reference.split_once('@') {
                    Some((name, digest)) => {
                        let digest: String = digest.replace(':', "-").chars().take("sha256-".len() + 12).collect();
                        let last_part = name.rfind('/').map_or(0, |slash| slash + 1);
                        let name = name[last_part..].find(':').map_or(name, |colon| &name[..last_part + colon]);
                        format!("{name}:{digest}")
                    }
                    None => reference.clone(),
                };
                name.parse().unwrap_or_else(|_| ImageName::from_anything(reference))
            }
        }
    }
}

/// `PATH[:TAG]`, as composefs and skopeo read it: a colon before the last slash belongs to the path.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_told_apart_and_print_as_they_were_written() {
        for text in [
            "dir:/a:b",
            "oci:/a/b:tag",
            "oci-archive:x.tar",
            "containers-storage:localhost/a:b",
            "containers-storage:[/var/lib/x]localhost/a:b",
            "docker://quay.io/a/b@sha256:00",
        ] {
            assert_eq!(source(text).to_string(), text);
        }
        let full = "containers-storage:[overlay@/root/store+/run/x:opt=1]a";
        let expected = Source::ContainersStorage { root: Some("/root/store".into()), image: "a".into() };
        assert_eq!(source(full), expected);
    }

    #[test]
    fn a_source_without_a_prefix_gets_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let error = dir.path().to_str().unwrap().parse::<Source>().unwrap_err();
        assert!(error.to_string().contains("did you mean dir:/"), "{error}");
        std::fs::write(dir.path().join("oci-layout"), "{}").unwrap();
        let error = dir.path().to_str().unwrap().parse::<Source>().unwrap_err();
        assert!(error.to_string().contains("did you mean oci:/"), "{error}");
        let error = "fedora".parse::<Source>().unwrap_err();
        assert!(error.to_string().contains("docker://fedora"), "{error}");
        for text in
            ["dir:", "oci:", "docker://", "containers-storage:", "containers-storage:[x]a", "containers-storage:[/x"]
        {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }

    #[test]
    fn default_names_come_from_the_source() {
        for (text, name) in [
            ("dir:/srv/My Root", "my-root:latest"),
            ("oci:/srv/layout", "layout:latest"),
            ("oci:/srv/layout:V2", "layout:V2"),
            ("oci-archive:/srv/os.tar:v1", "os:v1"),
            ("containers-storage:localhost/myos", "localhost/myos:latest"),
            ("docker://localhost:5000/a/b:v3", "localhost:5000/a/b:v3"),
            ("docker://quay.io/a@sha256:0123456789abcdef0123", "quay.io/a:sha256-0123456789ab"),
            ("docker://quay.io/a:t@sha256:0123456789abcdef0123", "quay.io/a:sha256-0123456789ab"),
        ] {
            assert_eq!(source(text).default_name().as_str(), name, "{text}");
        }
    }
}
