//! The verbs about VMs: making them, reaching into them, and ending them.
//!
//! One file per verb. A file parses the verb's options, calls `crate::vm` and prints; it starts no process and talks to
//! no hypervisor on its own. What guests read and what that costs is shown by the verbs of `observe`, which may import
//! from here; nothing here imports from `observe`, `image` or `store`.

pub mod cp;
pub mod exec;
pub mod life;
pub mod logs;
pub mod persist;
pub mod ps;
pub mod run;
pub mod ssh;
