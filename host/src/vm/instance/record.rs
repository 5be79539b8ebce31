//! What is written down of a VM in its folder: `vm.json` as it starts, `end.json` when it has ended.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::vm::instance::port_map::PortMap;
use crate::vm::instance::status::Timings;
use crate::vm::instance::volume::Volume;

/// What `vm.json` says about a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The VM's name.
    pub name: String,
    /// The lazyroot process that runs it.
    pub pid: u32,
    /// The image's manifest digest.
    pub image: String,
    /// The name that the image was asked for by, if it was by name.
    pub image_name: Option<String>,
    /// What it runs; empty for the image's own init.
    pub command: Vec<String>,
    /// Release of its kernel.
    pub kernel: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// When it was started, in seconds since 1970.
    pub created: u64,
    /// Whether its folder stays when it has ended.
    pub keep: bool,
    /// Whether it keeps what its guest writes.
    pub persistent: bool,
    /// What programs run with unless told otherwise.
    pub defaults: Defaults,
    /// Ports of the host that lead into it.
    pub ports: Vec<PortMap>,
    /// Folders of the host that it sees.
    pub volumes: Vec<Volume>,
}

/// What the image says about running programs in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// Folder to start in; empty for `/`.
    pub workdir: String,
    /// `user[:group]`; empty for root.
    pub user: String,
}

/// How a VM ended, in `end.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Its command's exit status; 0 if the image's init powered off; `None` if it failed.
    pub status: Option<u8>,
    /// Why it failed.
    pub reason: Option<String>,
    /// When, in seconds since 1970.
    pub at: u64,
    /// How long its start had taken.
    pub timings: Timings,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes a file that appears whole or not at all.
pub(super) fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer(&mut file, value)?;
        file.persist(dir.join(name))?;
        Ok::<_, anyhow::Error>(())
    };
    write().with_context(|| format!("cannot write {} in the VM's folder", name))
}
