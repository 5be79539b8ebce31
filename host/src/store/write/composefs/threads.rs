//! composefs' futures, run to their end.

use anyhow::{Result, anyhow};

/// Threads that read and hash files of a folder: more only helps disks that answer slowly.
const MAX_THREADS: usize = 8;

/// Runs a future to its end on threads of its own, so that callers may be asynchronous or not.
pub(super) fn block_on<T: Send, F: Future<Output = T>>(work: impl FnOnce() -> F + Send) -> Result<T> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(MAX_THREADS);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
            Ok(runtime.block_on(work()))
        });
        thread.join().map_err(|_| anyhow!("the import failed in a way that is a bug: please report it"))?
    })
}
