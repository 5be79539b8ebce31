//! The session with the host: one connection, requests in flight, and what the host is told of reads.
//!
//! Nothing that comes from here is verified, and its type says so. Checking it is [`crate::content`]'s work. The agent's
//! and the settings' own connections are opened with [`dial`], too.

pub mod calls;
pub mod connection;
pub mod dial;
pub mod error;
pub mod frames;
pub mod recorder;
pub mod requests;
#[cfg(test)]
mod tests;

pub use calls::Ticket;
pub use connection::Link;
pub use dial::{Address, REQUEST_DEADLINE, dial, dial_patiently, introduce};
pub use error::LinkError;
pub use frames::{FrameReader, write_capped};
pub use requests::ObjectRange;
