//! What the guest is for.

/// What runs once the image is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `init`: the image's own init, as PID 1.
    Init,
    /// `agent`: nothing but what the host asks the agent for.
    Agent,
}
