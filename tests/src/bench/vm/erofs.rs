//! A full EROFS image on virtio-blk.

use anyhow::Result;

use super::System;
use super::peer::{self, Root};
use crate::bench::inputs::{Inputs, Made, run};
use crate::bench::peers;

/// Modules of a root on EROFS.
pub const MODULES: &[peer::Module] = &[peer::DISK, ("erofs", "the file system on its disk")];

/// Makes the image, uncompressed: the fastest to read.
pub fn image(inputs: &Inputs) -> Result<Made> {
    inputs
        .made("full.erofs", |path| run(peers::program("usr/bin/mkfs.erofs")?.arg("--quiet").args([path, &inputs.tree])))
}

/// A VM with the image as its disk.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let image = image(inputs)?;
    let version = peers::version(&mut peers::program("usr/bin/mkfs.erofs")?);
    let root = Root {
        mount: ("erofs", "/dev/vda"),
        modules: MODULES,
        device: peer::disk(&image.path),
        server: None,
        about: format!("{version}; uncompressed image {}", image.about),
    };
    peer::prepare(inputs, root)
}
