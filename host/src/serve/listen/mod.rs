//! Where connections come in: addresses and sockets (`listener`), and a task for each connection (`accept`).
//!
//! Nothing here reads from a connection: the neighbour `server` does, and others that listen (`report`, and ports and
//! controls in `crate::vm`).

mod accept;
mod listener;

pub use accept::{Accept, serve_each};
pub use listener::{Endpoint, Listener, MAX_SOCKET_PATH};
