//! virtiofsd serving the tree itself.

use std::process::Stdio;

use anyhow::Result;

use super::System;
use super::peer::{self, Root, Server};
use crate::bench::inputs::Inputs;
use crate::bench::peers;

const PROGRAM: &str = "usr/libexec/virtiofsd";

/// Nothing changes the tree: the guest may keep what it knows, virtiofsd's best case. Its sandbox is of no use to a
/// program that is run from another tree.
const OPTIONS: &[&str] = &["--readonly", "--cache=always", "--sandbox=none", "--log-level=error"];

/// A VM with the tree as its root.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    let socket = inputs.fresh("virtiofs.sock")?;
    let version = peers::version(&mut peers::program(PROGRAM)?);
    let device = [
        "-chardev",
        &format!("socket,id=fs,path={}", socket.display()),
        "-device",
        "vhost-user-fs-pci,chardev=fs,tag=tree",
    ];
    let device = device.map(str::to_owned).into();
    let command = {
        let (socket, tree) = (socket.clone(), inputs.tree.clone());
        move || {
            let mut command = peers::program(PROGRAM)?;
            command.args(OPTIONS).arg("--socket-path").arg(&socket).arg("--shared-dir").arg(&tree);
            command.stdout(Stdio::null());
            Ok(command)
        }
    };
    let root = Root {
        mount: ("virtiofs", "tree"),
        modules: &[("virtiofs", "its file system")],
        device,
        server: Some(Server { command: Box::new(command), socket }),
        about: format!("{version} {}, serving the unpacked tree", OPTIONS[..3].join(" ")),
    };
    peer::prepare(inputs, root)
}
