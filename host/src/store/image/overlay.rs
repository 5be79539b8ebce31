//! What a manifest says for overlayfs: which object a file's content is, and which names are hidden.

use erofs_rs::types::Inode;
use lazyroot_proto::ObjectId;
use rustix::fs::FileType;

/// The xattr that names a file's object, relative to the data layer's root: `/ab/cdef...`.
pub(super) const REDIRECT: &[u8] = b"trusted.overlay.redirect";

/// Reads `/ab/cdef...`; composefs also writes it without the leading slash.
pub(super) fn parse_redirect(redirect: &[u8]) -> Option<ObjectId> {
    let path = redirect.strip_prefix(b"/").unwrap_or(redirect);
    let (dir, name) = path.split_at_checked(2)?;
    let dir = u8::from_str_radix(std::str::from_utf8(dir).ok()?, 16).ok()?;
    ObjectId::from_object_path(dir, name.strip_prefix(b"/")?)
}

/// The overlay's own entries: a 0/0 device hides a name. composefs puts 256 of them into the root (`00`..`ff`)
/// so that the data layer's folders are not seen through.
pub(super) fn is_whiteout(inode: &Inode) -> bool {
    inode.file_type() == FileType::CharacterDevice && inode.device() == Some((0, 0))
}

#[cfg(test)]
mod tests {
    use lazyroot_proto::{Algorithm, verity};

    use super::*;

    #[test]
    fn redirects_are_parsed_strictly() {
        let id = verity::digest(Algorithm::Sha256, b"x");
        let path = id.object_path();
        assert_eq!(parse_redirect(format!("/{path}").as_bytes()), Some(id));
        assert_eq!(parse_redirect(path.as_bytes()), Some(id));
        for bad in ["", "/", "/a", "/ab", "/ab/", "//ab/cd", "/ab/cd", &format!("/{path}0"), &format!("/+{path}")] {
            assert_eq!(parse_redirect(bad.as_bytes()), None, "{bad}");
        }
    }
}
