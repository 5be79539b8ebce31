//! The host's page cache: dropped on purpose, and seen when the kernel takes of it what a sample was to find there.

use std::fs;

use anyhow::{Context, Result};

/// Pages that others on the machine may read again during a sample: 1 MiB of 4 KiB pages, a thousandth of what moves
/// in a `tar`.
const OTHERS: u64 = 256;

/// Drops the host's caches: what comes next is read from its disks.
///
/// # Errors
/// If we may not: that needs root.
pub fn drop_host_caches() -> Result<()> {
    rustix::fs::sync();
    let file = "/proc/sys/vm/drop_caches";
    fs::write(file, "3").with_context(|| format!("cannot drop caches: {file}"))
}

/// Watches whether caches stay: a kernel short of memory, or told to save it, takes pages back, and what reads them
/// again waits for a disk or a server.
pub struct Watch(u64);

impl Watch {
    /// From now on.
    ///
    /// # Errors
    /// If the kernel does not count.
    pub fn start() -> Result<Self> {
        read_again().map(Self)
    }

    /// Whether nothing that was cached before had to be read again.
    ///
    /// # Errors
    /// If the kernel does not count.
    pub fn caches_stayed(&self) -> Result<bool> {
        Ok(read_again()? - self.0 <= OTHERS)
    }
}

/// Pages of files that the kernel had taken back and were read again, since the machine's start.
fn read_again() -> Result<u64> {
    let (file, name) = ("/proc/vmstat", "workingset_refault_file ");
    let text = fs::read_to_string(file).context(file)?;
    let count = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|count| count.parse().ok());
    count.with_context(|| format!("{file} has no {name}"))
}
