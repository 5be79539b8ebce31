//! squashfuse on a full SquashFS image.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::mounted::Served;
use super::{Inputs, Mounted, System};
use crate::bench::peers;
use crate::bench::vm::squashfs;

struct Squashfuse {
    image: PathBuf,
    about: String,
}

/// Makes the image.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let image = squashfs::image(inputs)?;
    peers::program(PROGRAM)?;
    // This one does not say.
    let version = peers::version(&mut peers::program("usr/bin/squashfuse")?);
    Ok(Box::new(Squashfuse { image: image.path, about: format!("{version}; zstd image {}", image.about) }))
}

/// The one of its two programs that is not the slower, and serves inodes rather than paths.
const PROGRAM: &str = "usr/bin/squashfuse_ll";

impl System for Squashfuse {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        let mut command = peers::program(PROGRAM)?;
        command.args(["-f", "-o", "ro,allow_other,dev,suid"]).arg(&self.image).arg(at);
        Ok(Box::new(Served::start(command, at)?))
    }

    fn about(&self) -> String {
        self.about.clone()
    }
}
