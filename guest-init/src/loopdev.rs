//! A read-only loop device over a file: how EROFS is mounted on kernels before 6.12.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys;

/// A loop device that frees itself once it is neither open nor mounted.
pub struct LoopDevice {
    path: PathBuf,
    /// Keeps the device attached until it is mounted.
    _device: File,
}

impl LoopDevice {
    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How often another process may snatch the free device between asking for it and taking it.
const ATTEMPTS: usize = 16;

/// Attaches `file`, read-only, to a free loop device.
///
/// # Errors
/// If there is no `/dev/loop-control` or no device can be had.
pub fn attach(file: &File) -> io::Result<LoopDevice> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        let path = PathBuf::from(format!("/dev/loop{}", sys::free_loop_device(&control)?));
        let device = File::open(&path)?;
        match sys::configure_loop_device(&device, file) {
            Ok(()) => return Ok(LoopDevice { path, _device: device }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => (),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every free loop device was taken by somebody else"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Needs root, as `make test` has it.
    #[test]
    fn a_file_shows_up_as_a_block_device() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let device = attach(&file).expect("attaching a loop device needs root: run through 'make test'");
        let mut content = Vec::new();
        File::open(device.path()).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, [7; 8192]);
    }
}
