//! Bytes on a connection: streams of any kind (`stream`), frames on them (`frames`), and the two directions of a session
//! that answers requests (`channel`). What lazyroot's own processes say to one another is `ipc`.
//!
//! Nothing here knows what a request asks for: that is `session`. Where connections come from is `listen`. What a frame
//! holds is the crate `lazyroot_proto`.

pub(super) mod channel;
pub(super) mod frames;
pub mod ipc;
pub(super) mod stream;
