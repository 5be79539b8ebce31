//! What a server's sessions did, for people and for programs: figures (`figures`), traces, a picture of a boot
//! (`waterfall`), and metrics for Prometheus (`metrics`). Other commands ask for them at a socket (`socket`).
//!
//! What the guest's kernel answers from its page cache, or finds where the boot profile put it, reaches neither its data
//! plane nor us: a "read" here is one that a program had to ask the data plane for.
//!
//! Nothing here is asked by a session: it reads what `record` holds, through `server`. How a command prints figures is in
//! `crate::cli`.

mod figures;
mod metrics;
mod socket;
mod waterfall;

pub use figures::{GuestStats, Kind, Latency, Reads, ServerStats, SessionStats};
pub use metrics::Metrics;
pub use socket::{Reporter, ServingProcess, ask_all, ask_stats, ask_trace, kept_stats, kept_trace, sweep};
pub use waterfall::{FileRow, Waterfall, file_rows};
