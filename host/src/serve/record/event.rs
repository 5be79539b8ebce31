//! What guests say of themselves.

use lazyroot_proto::frame::EventKind;

/// Something that happened in a guest.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When, in nanoseconds since the guest's kernel started.
    pub at: u64,
    /// For people, and safe to print; may be empty.
    pub text: String,
}
