//! A system whose requests come over io_uring: FUSE's own way since Linux 6.14, where administrators switch it on.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Inputs, Mounted, Prepare, System};
use crate::fuse_uring::Switch;

struct OverUring(Box<dyn System>);

/// The system that `prepare` makes, so.
pub fn prepare(prepare: Prepare, inputs: &Inputs) -> Result<Box<dyn System>> {
    drop(on()?);
    Ok(Box::new(OverUring(prepare(inputs)?)))
}

fn on() -> Result<Switch> {
    Switch::turn(true).context("this kernel has no FUSE over io_uring")
}

impl System for OverUring {
    fn mount(&self, at: &Path, workload: &str) -> Result<Box<dyn Mounted>> {
        // Who mounts agrees with the kernel once.
        let _on = on()?;
        self.0.mount(at, workload)
    }

    fn learn(&self, at: &Path, workload: &str) -> Result<()> {
        // What a workload reads is the same either way.
        self.0.learn(at, workload)
    }

    fn about(&self) -> String {
        format!("{}; fuse.enable_uring=1", self.0.about())
    }
}
