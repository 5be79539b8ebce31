//! Parts of an image that a guest may ask for, and the replies to that.

use lazyroot_proto::frame::{ErrorCode, HEADER, Header, kind};
use lazyroot_proto::{ObjectId, verity};

use crate::serve::images::ServedImage;

/// One part of the image that can be asked for.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Manifest,
    Index,
    Object(ObjectId),
    /// A level of its Merkle tree.
    Nodes(ObjectId, u8),
}

impl Part {
    pub(super) fn object(self) -> Option<ObjectId> {
        match self {
            Part::Object(id) | Part::Nodes(id, _) => Some(id),
            Part::Manifest | Part::Index => None,
        }
    }
}

/// A range of a part, in bytes.
#[derive(Clone, Copy)]
pub(super) struct PartRange {
    pub(super) part: Part,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// What an ERROR frame says.
pub(super) type Failure = (ErrorCode, String);

/// Whether the session may read this, and the range lies inside it.
pub(super) fn check(image: &ServedImage, range: PartRange) -> Result<(), Failure> {
    let object_size = |id: &ObjectId| {
        let position = image.index.position(id);
        let entry = position.and_then(|position| image.index.get(position));
        entry
            .map(|(_, size)| size)
            .ok_or_else(|| (ErrorCode::Refused, format!("object {id} is not part of image {}", image.id)))
    };
    let size = match range.part {
        Part::Manifest => image.manifest_size,
        Part::Index => image.index_bytes.len() as u64,
        Part::Object(id) => object_size(&id)?,
        Part::Nodes(id, level) => verity::level_len(id.algorithm(), object_size(&id)?, level),
    };
    match range.offset.checked_add(range.len.into()) {
        Some(end) if end <= size => Ok(()),
        _ => Err(outside(range.offset, range.len, size)),
    }
}

/// The whole reply frame to a range that was checked. May block.
pub(super) fn read(image: &ServedImage, tag: u64, range: PartRange) -> Result<Vec<u8>, Failure> {
    let object = |id| image.object(&id).ok_or_else(|| (ErrorCode::Refused, format!("object {id} is of no image here")));
    let unavailable = |error: &dyn std::fmt::Display| (ErrorCode::Unavailable, error.to_string());
    let mut frame = Vec::new();
    append_data_frame(&mut frame, tag, range.len);
    let buffer = &mut frame[HEADER..];
    let piece = |bytes: &[u8], buffer: &mut [u8]| {
        let start = range.offset as usize;
        match bytes.get(start..start + buffer.len()) {
            Some(piece) => buffer.copy_from_slice(piece),
            None => return Err((ErrorCode::Unavailable, "the host's metadata changed under it".to_owned())),
        }
        Ok(())
    };
    match range.part {
        Part::Manifest => image
            .read_manifest(range.offset, buffer)
            .map_err(|error| unavailable(&format_args!("cannot read the manifest of {}: {error}", image.id)))?,
        Part::Index => piece(&image.index_bytes, buffer)?,
        Part::Object(id) => {
            image.source.read(&object(id)?, range.offset, buffer).map_err(|error| unavailable(&error))?;
        }
        Part::Nodes(id, level) => {
            image.read_nodes(&object(id)?, level, range.offset, buffer).map_err(|error| unavailable(&error))?;
        }
    }
    Ok(frame)
}

/// Appends room for a DATA frame of `len` bytes, its header filled in.
pub(super) fn append_data_frame(frames: &mut Vec<u8>, tag: u64, len: u32) {
    frames.reserve(HEADER + len as usize);
    frames.extend_from_slice(&Header { len, kind: kind::DATA, tag }.encode());
    frames.resize(frames.len() + len as usize, 0);
}

pub(super) fn outside(offset: u64, len: u32, size: u64) -> Failure {
    (ErrorCode::Invalid, format!("{len} bytes at {offset} lie outside of {size}"))
}

pub(super) fn no_object(position: u32) -> Failure {
    (ErrorCode::Invalid, format!("the image has no object at position {position}"))
}
