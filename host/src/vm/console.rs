//! The console of a VM that nobody sits at: a pipe from the hypervisor, and a log of bounded size.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hypervisor::Console;

/// The log's name in a VM's folder.
pub const LOG: &str = "console.log";

/// Moves what a guest writes to its console into the log. Dropping it stops that.
pub struct ConsoleLog {
    #[cfg(target_os = "linux")]
    pump: linux::Pump,
    path: PathBuf,
}

impl ConsoleLog {
    /// The log's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes what the guest wrote up to now, once its hypervisor has ended.
    pub async fn finish(&mut self) {
        #[cfg(target_os = "linux")]
        self.pump.finish().await;
    }
}

/// A console for a VM with this folder; must be called inside a tokio runtime.
///
/// # Errors
/// If pipe or log cannot be made.
#[cfg(target_os = "linux")]
pub fn bounded(dir: &Path) -> Result<(Console, ConsoleLog)> {
    let path = dir.join(LOG);
    let (pipe, pump) = linux::Pump::start(dir, &path)?;
    Ok((Console::File(pipe), ConsoleLog { pump, path }))
}

/// A console for a VM with this folder. Not bounded here: the hypervisor writes the file by itself.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn bounded(dir: &Path) -> Result<(Console, ConsoleLog)> {
    let path = dir.join(LOG);
    Ok((Console::File(path.clone()), ConsoleLog { path }))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::path::{Path, PathBuf};

    use anyhow::{Context, Result};
    use tokio::io::AsyncReadExt;
    use tokio::net::unix::pipe::{OpenOptions, Receiver};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::super::log::Log;

    pub struct Pump {
        stop: Option<oneshot::Sender<()>>,
        task: JoinHandle<()>,
    }

    impl Pump {
        /// The pipe's path, and what empties it.
        pub fn start(dir: &Path, log: &Path) -> Result<(PathBuf, Self)> {
            let path = dir.join("console");
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).context("cannot make a pipe for the console")?;
            // For writing too, so that it has no end before the hypervisor opens it.
            let pipe = OpenOptions::new().read_write(true).open_receiver(&path)?;
            let log = Log::create(log).context("cannot make the console's log")?;
            let (stop, stopped) = oneshot::channel();
            Ok((path, Self { stop: Some(stop), task: tokio::spawn(pump(pipe, log, stopped)) }))
        }

        pub async fn finish(&mut self) {
            if let Some(stop) = self.stop.take() {
                let _ = stop.send(());
                let _ = (&mut self.task).await;
            }
        }
    }

    impl Drop for Pump {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    /// Until told to stop, and then what is left. A log that cannot be written is no reason to stop the guest.
    async fn pump(mut pipe: Receiver, mut log: Log, mut stopped: oneshot::Receiver<()>) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            tokio::select! {
                biased;
                read = pipe.read(&mut buffer) => match read {
                    Ok(len) => {
                        let _ = log.write(&buffer[..len]);
                    }
                    Err(_) => return,
                },
                _ = &mut stopped => return,
            }
        }
    }
}
