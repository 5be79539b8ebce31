//! What one connection is about: a guest that reads its image (`data`), another lazyroot that reads any (`peer`), and the
//! control connection and streams of a VM's agent (`agent`). `part` is what a guest may ask for, `registry` all data
//! sessions of a server and what they share.
//!
//! A session answers requests and keeps a record of that in `record`. Which session a connection is for is decided by
//! `server`; bytes on the connection are the business of `wire`, and of objects and images that of `images` and
//! `crate::store`.

mod agent;
pub(super) mod data;
mod part;
pub(super) mod peer;
mod registry;

pub use agent::{AgentGone, GuestAgent};
pub(super) use registry::Sessions;
