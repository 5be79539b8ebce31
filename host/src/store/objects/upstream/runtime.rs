//! The threads on which upstreams are talked to.
//!
//! Sources are read from threads that may block, the object server's or none of tokio's at all, so upstreams have a
//! runtime of their own, which lives as long as the program.

use std::future::Future;
use std::sync::{LazyLock, mpsc};

use tokio::runtime::Runtime;

/// Waiting for sockets takes little; hashing and compressing happen elsewhere.
const THREADS: usize = 2;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("upstream")
        .enable_all()
        .build()
        .expect("the system gives two threads")
});

/// Starts a task that nobody waits for.
pub(in crate::store) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    RUNTIME.spawn(task);
}

/// Runs a task to its end and blocks the calling thread meanwhile, whatever thread that is.
pub(in crate::store) fn wait<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, result) = mpsc::sync_channel(1);
    spawn(async move {
        let _ = sender.send(task.await);
    });
    result.recv().expect("the task does not panic")
}
