//! erofsfuse on a full EROFS image.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::mounted::Served;
use super::{Inputs, Mounted, System};
use crate::bench::peers;
use crate::bench::vm::erofs;

struct Erofsfuse {
    image: PathBuf,
    about: String,
}

/// Makes the image.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let image = erofs::image(inputs)?;
    peers::program("usr/bin/erofsfuse")?;
    let version = peers::version(&mut peers::program("usr/bin/mkfs.erofs")?);
    Ok(Box::new(Erofsfuse { image: image.path, about: format!("{version}; uncompressed image {}", image.about) }))
}

impl System for Erofsfuse {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        let mut command = peers::program("usr/bin/erofsfuse")?;
        command.args(["-f", "-o", "ro,allow_other,dev,suid"]).arg(&self.image).arg(at);
        Ok(Box::new(Served::start(command, at)?))
    }

    fn about(&self) -> String {
        self.about.clone()
    }
}
