//! A full SquashFS image on virtio-blk.

use anyhow::Result;

use super::System;
use super::peer::{self, Root};
use crate::bench::inputs::{Inputs, Made, run};
use crate::bench::peers;

/// Makes the image, compressed with zstd.
pub fn image(inputs: &Inputs) -> Result<Made> {
    inputs.made("full.squashfs", |path| {
        let mut command = peers::program("usr/bin/mksquashfs")?;
        run(command.args([&inputs.tree, path]).args(["-quiet", "-no-progress", "-comp", "zstd"]))
    })
}

/// A VM with the image as its disk.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let image = image(inputs)?;
    let root = Root {
        mount: ("squashfs", "/dev/vda"),
        modules: &[peer::DISK, ("squashfs", "the file system on its disk")],
        device: peer::disk(&image.path),
        server: None,
        about: format!("mksquashfs -comp zstd; image {}", image.about),
    };
    peer::prepare(inputs, root)
}
