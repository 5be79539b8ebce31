//! Threads, each with a name that `ps -T` and a debugger show.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread.
///
/// # Errors
/// If the system has none.
pub fn start<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(run)
}

/// Starts a thread that nothing goes on without.
///
/// # Panics
/// If the system has none.
pub fn start_or_panic<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    start(name, run).expect("failed to spawn thread")
}
