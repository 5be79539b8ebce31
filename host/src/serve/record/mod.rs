//! What is known of sessions: of each one (`activity`), which parts of its image were read (`coverage`), what its guest
//! said (`event`), and what all of them were sent together (`totals`).
//!
//! Sessions write here, and `report` shows it to people and programs. Nothing here sends or asks anything. What outlives
//! the server is written by `catalog` (boot profiles and traces) and by `report` (figures of a VM that has ended).

mod activity;
mod coverage;
mod event;
mod totals;

pub use activity::{Activity, State as ActivityState};
pub use coverage::Coverage;
pub use event::Event;
pub use totals::{Snapshot, Totals};
