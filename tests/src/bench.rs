//! Benchmarks: workloads, the systems they run on, and the report.

pub mod native;
pub mod report;
pub mod workloads;
