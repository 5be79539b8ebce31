//! Benchmarks: workloads, the systems they run on, and the report.
//!
//! One file is one system: those that are mounted on this machine in [`native`], those that a VM boots into in [`vm`].

pub mod boot;
mod caches;
pub mod crowd;
pub mod exec;
pub mod guest;
pub mod import;
pub mod inputs;
pub mod launch;
pub mod look;
pub mod machine;
pub mod native;
mod peers;
pub mod plan;
mod plot;
pub mod raw;
pub mod report;
pub mod upstream;
mod vm;
