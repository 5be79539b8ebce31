//! The console of a VM that nobody sits at: what its hypervisor writes, kept in a log of bounded size.
//!
//! QEMU writes into a pipe. vfkit writes a file, at its own offset: that is emptied as it is read, so that what is behind
//! the offset takes no room.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::vm::log::Log;

/// Where a machine's serial console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// To a file.
    File(PathBuf),
    /// To this process's terminal, both ways.
    Stdio,
    /// To a pseudo-terminal that the hypervisor makes.
    Pty,
}

/// The log's name in a VM's folder.
pub const LOG: &str = "console.log";

/// What the hypervisor writes to, beside the log.
const RAW: &str = "console";

/// Pause between two looks at a file: often enough for a person who watches, and for a guest that talks without end.
const EVERY: Duration = Duration::from_millis(50);

/// The most that is taken at a time, in bytes.
const PIECE: usize = 64 << 10;

/// What a file may hold that is in the log already, in bytes.
const READ_ALREADY: u64 = 1 << 20;

/// Moves what a guest writes to its console into the log. Dropping it stops that.
pub struct ConsoleLog {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    path: PathBuf,
}

impl ConsoleLog {
    /// A console that is a file, for a VM with this folder; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If file or log cannot be made.
    pub fn from_file(dir: &Path) -> Result<(Console, Self)> {
        let raw = dir.join(RAW);
        let file = File::options().read(true).write(true).create_new(true).open(&raw);
        let file = file.context("cannot make a file for the console")?;
        let this = Self::start(dir, |log, stopped| move_file(Tail::new(file), log, stopped))?;
        Ok((Console::File(raw), this))
    }

    /// A console that is a pipe, for a VM with this folder; must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If pipe or log cannot be made.
    #[cfg(target_os = "linux")]
    pub fn from_pipe(dir: &Path) -> Result<(Console, Self)> {
        use rustix::fs::{CWD, Mode, mkfifoat};
        let raw = dir.join(RAW);
        mkfifoat(CWD, &raw, Mode::RUSR | Mode::WUSR).context("cannot make a pipe for the console")?;
        // For writing too, so that it has no end before the hypervisor opens it.
        let pipe = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(&raw)?;
        let this = Self::start(dir, |log, stopped| move_pipe(pipe, log, stopped))?;
        Ok((Console::File(raw), this))
    }

    fn start<F>(dir: &Path, work: impl FnOnce(Log, oneshot::Receiver<()>) -> F) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let path = dir.join(LOG);
        let log = Log::create(&path).context("cannot make the console's log")?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop: Some(stop), task: tokio::spawn(work(log, stopped)), path })
    }

    /// The log's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes what the guest wrote up to now, once its hypervisor has ended.
    pub async fn finish(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until told to stop, and then what is left. A log that cannot be written is no reason to stop the guest.
#[cfg(target_os = "linux")]
async fn move_pipe(mut pipe: tokio::net::unix::pipe::Receiver, mut log: Log, mut stopped: oneshot::Receiver<()>) {
    use tokio::io::AsyncReadExt;
    let mut buffer = vec![0; PIECE];
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

/// As [`move_pipe`], for a file.
async fn move_file(mut tail: Tail, mut log: Log, mut stopped: oneshot::Receiver<()>) {
    loop {
        let over = tokio::time::timeout(EVERY, &mut stopped).await.is_ok();
        if tail.move_to(&mut log).is_err() || over {
            return;
        }
    }
}

/// A file that another process writes.
struct Tail {
    file: File,
    /// Up to where it was read.
    offset: u64,
    /// Up to where it was emptied.
    emptied: u64,
}

impl Tail {
    fn new(file: File) -> Self {
        Self { file, offset: 0, emptied: 0 }
    }

    /// Takes what is new.
    fn move_to(&mut self, log: &mut Log) -> io::Result<()> {
        // Emptied, a file goes on behind a hole if its writer keeps an offset, and from its beginning if it appends.
        let len = self.file.metadata()?.len();
        if (1..=self.offset).contains(&len) && self.emptied == self.offset {
            (self.offset, self.emptied) = (0, 0);
        }
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut buffer = vec![0; PIECE];
        loop {
            let len = self.file.read(&mut buffer)?;
            if len == 0 {
                break;
            }
            self.offset += len as u64;
            let _ = log.write(&buffer[..len]);
        }
        // What comes between the last look and this is lost, of a guest that fills a file like this in no time.
        if self.offset - self.emptied >= READ_ALREADY {
            self.file.set_len(0)?;
            self.emptied = self.offset;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    /// All that a writer says in pieces arrives, and the file stays small.
    fn assert_arrives(mut writer: File, path: &Path) {
        let mut tail = Tail::new(File::options().read(true).write(true).open(path).unwrap());
        let log = path.with_extension("log");
        let mut to = Log::create(&log).unwrap();
        let line = [b'x'; 99_999];
        for number in 0..100 {
            writer.write_all(&line).unwrap();
            writer.write_all(format!("\n{number}\n").as_bytes()).unwrap();
            tail.move_to(&mut to).unwrap();
            let said = crate::vm::log::read(&log).unwrap();
            assert!(said.ends_with(format!("x\n{number}\n").as_bytes()), "{number}");
            assert!(!said.contains(&0), "{number}: a hole was read");
            assert!(writer.metadata().unwrap().blocks() * 512 <= READ_ALREADY + 200_000, "{number}");
        }
    }

    #[test]
    fn a_file_is_followed_and_kept_small_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        assert_arrives(File::create(&path).unwrap(), &path);
        std::fs::remove_file(&path).unwrap();
        assert_arrives(File::options().append(true).create(true).open(&path).unwrap(), &path);
    }
}
