//! Why content could not be had.

use lazyroot_proto::ObjectId;
use lazyroot_proto::verified::Verified;

use crate::link::LinkError;

/// Why a read failed. The text names the object.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The host could not deliver it.
    #[error("object {id}: {error}")]
    Link {
        /// Which object.
        id: ObjectId,
        /// What went wrong.
        error: LinkError,
    },
    /// What arrived is not what the digest names.
    #[error("object {0}: the content does not match its digest")]
    Corrupt(ObjectId),
}

/// What a read or a fetch brings: verified bytes, or why there are none.
pub type ReadResult = Result<Verified, ReadError>;
