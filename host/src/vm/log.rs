//! Logs of bounded size: the newest part of what a guest says, and those who follow it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::durable::rename_unsynced;

/// A log's file is put aside at this length, in bytes, and the one put aside before it goes: a guest that talks
/// without end keeps twice as much on the host, which is more than any boot says.
const LIMIT: u64 = 1 << 20;

/// Pause between two looks at a log's end: often enough for a person who watches.
const EVERY: Duration = Duration::from_millis(50);

/// A log that is written: `PATH`, and before it `PATH.1`.
pub struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Log {
    /// An empty log.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path)?, path: path.to_owned(), len: 0 })
    }

    /// Adds `data`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if self.len >= LIMIT {
            rename_unsynced(&self.path, older(&self.path))?;
            *self = Self::create(&self.path)?;
        }
        self.file.write_all(data)?;
        self.len += data.len() as u64;
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// What a log has.
///
/// # Errors
/// If it cannot be read; one that is not there is empty.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for path in [older(path), path.to_owned()] {
        match fs::read(path) {
            Ok(part) => text.extend(part),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(text)
}

/// Hands a log to `take`, from its beginning, and what is added as it comes, until `over` says that no more will and
/// all was taken.
///
/// # Errors
/// Those of `take`, and of reading.
pub fn follow(path: &Path, mut take: impl FnMut(&[u8]) -> io::Result<()>, over: impl Fn() -> bool) -> io::Result<()> {
    let mut open: Option<File> = None;
    if let Ok(mut file) = File::open(older(path)) {
        drain(&mut file, &mut take)?;
    }
    loop {
        // Before the last look, not after it.
        let last = over();
        if let Some(file) = &mut open {
            drain(file, &mut take)?;
        }
        let current = fs::metadata(path).ok();
        let moved = match (&open, &current) {
            (Some(file), Some(current)) => file.metadata()?.ino() != current.ino(),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if moved {
            // What was added between the two looks.
            if let Some(mut file) = open.take() {
                drain(&mut file, &mut take)?;
            }
            open = File::open(path).ok();
            continue;
        }
        if last {
            return Ok(());
        }
        thread::sleep(EVERY);
    }
}

fn drain(file: &mut File, take: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            len => take(&buffer[..len])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_log_keeps_its_newest_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::create(&path).unwrap();
        let lines = 3 * LIMIT / 16;
        for number in 0..lines {
            log.write(format!("{number:015}\n").as_bytes()).unwrap();
        }
        let text = read(&path).unwrap();
        assert!(text.len() as u64 >= LIMIT && text.len() as u64 <= 2 * LIMIT + 16, "{}", text.len());
        assert!(text.ends_with(format!("{:015}\n", lines - 1).as_bytes()));
        assert_eq!(read(&dir.path().join("none")).unwrap(), b"");
    }

    #[test]
    fn who_follows_a_log_gets_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let over = AtomicBool::new(false);
        let mut copied = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut log = Log::create(&path).unwrap();
                for _ in 0..100 {
                    log.write(&[b'x'; 1000]).unwrap();
                    std::thread::yield_now();
                }
                over.store(true, Ordering::Release);
            });
            follow(&path, |data| copied.write_all(data), || over.load(Ordering::Acquire)).unwrap();
        });
        assert_eq!(copied.len(), 100_000);
    }
}
