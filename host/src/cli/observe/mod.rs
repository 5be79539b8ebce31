//! The verbs that show what guests read and what that costs, and the profiles that are learned from it.
//!
//! `guests` finds those whose reads are counted: VMs, mounts, and the guests of servers. The figures are made and kept
//! in `crate::serve`, and traces and profiles in `crate::store`; nothing is counted here. The state of VMs is shown by
//! the verbs of `vm`, and the figures of a store by `store`.

mod figures;
pub mod guests;
pub mod profile;
pub mod stats;
pub mod top;
pub mod trace;
