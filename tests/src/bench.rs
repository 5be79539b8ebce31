//! Benchmarks: workloads, the systems they run on, and the report.

pub mod boot;
pub mod launch;
pub mod native;
mod peer;
pub mod report;
mod vm;
pub mod workloads;
