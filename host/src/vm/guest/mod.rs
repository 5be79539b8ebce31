//! What lazyroot does inside a running VM: every module here speaks to the guest's agent over a stream that the guest
//! opened.
//!
//! Programs ([`exec`]), copies ([`copy`]), published ports ([`ports`]), ssh and readiness. How another process reaches the
//! VM, and what it knows of it, is next door, in [`super::instance`].

pub mod copy;
pub mod exec;
pub mod ports;
pub mod readiness;
pub mod ssh;
