//! A full EROFS image that an NBD server gives the hypervisor as a disk.

use anyhow::Result;

use super::System;
use super::peer::{self, Root, Server};
use crate::bench::inputs::Inputs;
use crate::bench::peers;

const PROGRAM: &str = "usr/bin/qemu-nbd";

/// A VM with that disk.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let image = super::erofs::image(inputs)?;
    let socket = inputs.fresh("nbd.sock")?;
    let version = peers::version(&mut peers::program(PROGRAM)?);
    let command = {
        let socket = socket.clone();
        move || {
            let mut command = peers::program(PROGRAM)?;
            command.args(["--read-only", "--persistent", "--format=raw", "--socket"]).args([&socket, &image.path]);
            Ok(command)
        }
    };
    let root = Root {
        mount: ("erofs", "/dev/vda"),
        modules: super::erofs::MODULES,
        device: peer::drive(&format!("driver=nbd,server.type=unix,server.path={}", socket.display())),
        server: Some(Server { command: Box::new(command), socket }),
        about: format!("{version}, serving the same image"),
    };
    peer::prepare(inputs, root)
}
