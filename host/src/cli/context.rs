//! What every verb gets: lazyroot's folders and the options before the verb.

use std::path::PathBuf;

use anyhow::Result;

use crate::home::Home;

/// lazyroot's own errors exit with this status, so that they are told apart from a command's (as podman does).
pub const EXIT_OWN_ERROR: u8 = 125;

/// What every verb gets.
pub struct Context {
    /// lazyroot's folders.
    pub home: Home,
    /// `--store`.
    pub store: Option<PathBuf>,
    /// How often `-v` was given.
    pub verbose: u8,
}

/// The runtime of a verb that talks to running VMs. One thread is enough, and starts at once.
///
/// # Errors
/// If the system has no room for it.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
