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

/// Attaches `file`, read-only, to a free loop device among the `devices` (`/dev`).
///
/// # Errors
/// If there is no `loop-control` or no device can be had.
pub fn attach(devices: &Path, file: &File) -> io::Result<LoopDevice> {
    let control = File::options().read(true).write(true).open(devices.join("loop-control"))?;
    for _ in 0..ATTEMPTS {
        let path = devices.join(format!("loop{}", sys::free_loop_device(&control)?));
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
        // A container's /dev may lack loop devices; the kernel's own list of devices does not.
        let devices = tempfile::tempdir().unwrap();
        rustix::mount::mount("dev", devices.path(), "devtmpfs", rustix::mount::MountFlags::empty(), None)
            .expect("mounting needs root: run through 'make test'");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let read = attach(devices.path(), &file).and_then(|device| {
            let mut content = Vec::new();
            File::open(device.path())?.read_to_end(&mut content)?;
            Ok(content)
        });
        rustix::mount::unmount(devices.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(read.unwrap(), [7; 8192]);
    }
}
