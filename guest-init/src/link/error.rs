//! Why a request to the host failed.

use std::time::Duration;

use lazyroot_proto::frame::{ErrorCode, FrameError};

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    /// The host answered with an error.
    #[error("{message}")]
    Host {
        /// Which kind.
        code: ErrorCode,
        /// The host's words.
        message: String,
    },
    /// No answer within the deadline.
    #[error("no answer from the host within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The host answered with something that makes no sense; asking again would not help.
    #[error("the host broke the protocol: {0}")]
    Protocol(#[from] FrameError),
    /// The host's reply was not as long as what was asked for.
    #[error("the host sent {reply_len} bytes where {requested_len} were asked for")]
    Length {
        /// Bytes asked for.
        requested_len: u64,
        /// Bytes received.
        reply_len: u64,
    },
}
