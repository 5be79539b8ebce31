//! What a server's sessions did, for people and for programs: figures, traces, a picture of a boot, and metrics.
//!
//! What the guest's kernel answers from its page cache, or finds where the boot profile put it, reaches neither its data
//! plane nor us: a "read" here is one that a program had to ask the data plane for.

mod metrics;
mod socket;
mod stats;
mod waterfall;

pub use metrics::Metrics;
pub use socket::{Reporter, Seen, ask_stats, ask_trace, kept_stats, kept_trace, seen_in, sweep};
pub use stats::{GuestStats, Kind, Latency, Reads, ServerStats, SessionStats, percent};
pub use waterfall::{FileRow, Waterfall, duration, file_rows};
