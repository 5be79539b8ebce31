//! The verbs about VMs: making them, reaching into them, and ending them.
//!
//! One file per verb, and files that verbs share: `find`, `process`, `processes`, `report`, `sizes` and `timings`. A
//! file parses the verb's options, calls `crate::vm` and prints; it talks to no hypervisor on its own. The verbs of
//! `observe` show what guests read and may import from here; nothing here imports from `observe`, `image` or `store`.

pub mod commit;
pub mod cp;
pub mod exec;
mod find;
pub mod fork;
pub mod inspect;
pub mod logs;
pub mod pause;
pub mod port;
mod process;
pub mod processes;
pub mod ps;
mod report;
pub mod resize;
pub mod rm;
pub mod run;
pub mod shell;
mod sizes;
pub mod snapshot;
pub mod ssh;
pub mod start;
pub mod stop;
mod timings;
pub mod update;
pub mod wait;
