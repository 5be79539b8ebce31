//! The kernel's switch for FUSE over io_uring, which administrators turn.

use std::{fs, io};

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The switch in a position; dropped, it is where it was before.
pub struct Switch {
    before: String,
}

impl Switch {
    /// Turns it on or off for what is mounted from here on.
    ///
    /// # Errors
    /// NotFound if the kernel has none: FUSE over io_uring came with Linux 6.14.
    pub fn turn(on: bool) -> io::Result<Self> {
        let before = fs::read_to_string(SWITCH)?;
        fs::write(SWITCH, if on { "Y" } else { "N" })?;
        Ok(Self { before })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        fs::write(SWITCH, self.before.trim()).expect("who has turned it can turn it back");
    }
}
