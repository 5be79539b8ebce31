//! The header that every frame begins with, and the protocol's limits.

/// Version of the protocol; both ends must have the same one.
pub const VERSION: u16 = 1;

/// First bytes of a hello, so that a stranger on the socket is told apart from an old version.
pub const MAGIC: &[u8; 8] = b"LAZYROOT";

/// Length of a frame's header in bytes.
pub const HEADER: usize = 16;

/// The most bytes one read may ask for: what one FUSE READ carries with the largest readahead the kernel has.
pub const MAX_READ: u32 = 1 << 20;

/// The longest payload either end accepts, in bytes: the largest read's data.
pub const MAX_PAYLOAD: usize = MAX_READ as usize;

/// The most extents a [`Request::ReadList`] may name: a frame of them stays under [`MAX_GUEST_WRITE`].
pub const MAX_BATCH: usize = 128;

/// The most bytes a guest hands to one `write` on a vsock stream. `vhost-device-vsock` 0.3 reads only the
/// first descriptor of a packet and newer kernels send more than 32 KiB in several: a larger write would hang
/// the stream for ever (cloud-hypervisor #7672, libkrun #674 are the same fault). Half of that leaves room.
pub const MAX_GUEST_WRITE: usize = 16 << 10;

/// The vsock port that guests dial unless told otherwise ("LR" in ASCII, doubled to stay off low ports).
pub const DEFAULT_PORT: u32 = 0x4c52;

/// Bytes that are not a frame of this protocol.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The header announces more than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes is longer than the protocol allows")]
    TooLong(u32),
    /// The kind is not one this end expects here.
    #[error("unexpected frame kind {0:#04x}")]
    UnknownKind(u8),
    /// The payload does not have the form of its kind.
    #[error("malformed frame of kind {0:#04x}")]
    Malformed(u8),
    /// The other end does not speak this protocol at all.
    #[error("the peer does not speak lazyroot's protocol")]
    NotLazyroot,
    /// The other end speaks another version.
    #[error(
        "the peer speaks protocol version {0}, this end speaks {VERSION}: use the guest-init built with this lazyroot"
    )]
    Version(u16),
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Payload length in bytes, at most [`MAX_PAYLOAD`].
    pub len: u32,
    /// What the payload is: a `kind::` constant.
    pub kind: u8,
    /// The request that a reply answers; chosen by the requester. 0 where nothing is answered.
    pub tag: u64,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = self.kind;
        bytes[8..].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }

    /// Parses a header.
    ///
    /// # Errors
    /// If the payload would be longer than [`MAX_PAYLOAD`] or reserved bytes are set.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let len = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
        let kind = bytes[4];
        if len as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        if bytes[5..8] != [0; 3] {
            return Err(FrameError::Malformed(kind));
        }
        let tag = u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
        Ok(Self { len, kind, tag })
    }
}
