//! The guest's network, set up without the image's help: address, route, and who answers DNS.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use lazyroot_proto::settings::Network;

use crate::sys;

/// Gives the first network interface what the host says. An init that does the same again does no harm.
///
/// # Errors
/// If there is no interface, or it cannot be set up.
pub fn configure(network: &Network) -> Result<()> {
    let name = first_interface().context("the guest has no network interface")?;
    let netmask = u32::MAX.checked_shl(32 - u32::from(network.prefix)).unwrap_or(0).to_be_bytes();
    sys::set_address(&name, network.address, netmask).with_context(|| format!("cannot give {name} an address"))?;
    sys::bring_up(&name).with_context(|| format!("cannot bring {name} up"))?;
    sys::add_default_route(network.gateway).context("cannot add the default route")
}

/// The first interface with a device behind it.
fn first_interface() -> Option<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next()
}

/// Tells the programs of the image mounted at `sysroot` who answers DNS. A resolv.conf that is a link to something that
/// a program of the image is to make is left alone if an init runs that program.
///
/// # Errors
/// If the file cannot be written.
pub fn write_resolv_conf(sysroot: &Path, network: &Network, init: bool) -> Result<()> {
    let path = sysroot.join("etc/resolv.conf");
    let link = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink());
    if link && init {
        return Ok(());
    }
    let [a, b, c, d] = network.dns;
    let write = || {
        fs::create_dir_all(sysroot.join("etc"))?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        let mut file = fs::File::options().write(true).create_new(true).mode(0o644).open(&path)?;
        io::Write::write_all(&mut file, format!("nameserver {a}.{b}.{c}.{d}\n").as_bytes())
    };
    write().context("cannot write /etc/resolv.conf")
}
