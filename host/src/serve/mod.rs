//! What the host serves: images to guests, and all that they ask for, over any transport.
//!
//! - `listen`: where connections come in; `wire`: bytes and frames on them.
//! - `server`: takes a connection, reads what it is for, and gives it to its session.
//! - `session`: answers what comes on one connection, from what `images` has; keeps a `record` of that.
//! - `report`: shows the record to people and programs.
//!
//! Arrows run one way: report -> server -> session -> images -> record, and all of them -> wire and listen. Bytes of
//! objects come from `crate::store`, which knows nothing of guests; hypervisors and the host's side of the agent's
//! services are in `crate::vm`.

mod images;
mod listen;
mod record;
pub mod report;
mod server;
mod session;
mod wire;

pub use images::{BootHistory, Catalog, ProfileUse, ServedImage};
pub use listen::{Accept, Endpoint, Listener, MAX_SOCKET_PATH, serve_each};
pub use record::{Activity, ActivityState, Coverage, Event, Snapshot, Totals};
pub use server::Server;
pub use session::{AgentGone, GuestAgent};
pub use wire::frames::{read_frame, write_frame};
pub use wire::ipc;
pub use wire::stream::BoxStream;
