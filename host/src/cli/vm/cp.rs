//! `lazyroot cp`: files and folders into a running VM, or out of it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cli::context::{Context, runtime};
use crate::cli::vm::find::find_running;
use crate::vm::guest::copy;

/// Copy files and folders into a running VM, or out of it
///
/// One of the two is VM:PATH. A path here that has a colon is written with a slash before it: ./a:b. As with cp -a: into
/// TARGET if that is a folder, else in its place; modes, times, links and extended attributes are kept.
#[derive(clap::Args)]
pub struct CpArgs {
    /// What to copy
    source: OsString,
    /// Where to
    target: OsString,
}

/// One side of a copy.
enum Side {
    Here(PathBuf),
    Guest { vm: String, path: Vec<u8> },
}

impl Side {
    fn of(text: &OsString) -> Result<Self> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/');
        match colon {
            Some(colon) if slash.is_none_or(|slash| colon < slash) => {
                let path = bytes[colon + 1..].to_vec();
                let vm = String::from_utf8_lossy(&bytes[..colon]).into_owned();
                if path.first() != Some(&b'/') {
                    bail!("'{}' is no absolute path in VM '{vm}'", String::from_utf8_lossy(&path));
                }
                Ok(Self::Guest { vm, path })
            }
            _ => Ok(Self::Here(OsString::from_vec(bytes.to_vec()).into())),
        }
    }
}

/// Copies.
pub fn cp(args: &CpArgs, context: &Context) -> Result<ExitCode> {
    let runtime = runtime()?;
    let (name, copied) = match (Side::of(&args.source)?, Side::of(&args.target)?) {
        (Side::Here(source), Side::Guest { vm, path }) => {
            let vm = find_running(context, &vm)?;
            let copied = runtime.block_on(copy::put(&vm.dir, &source, &path));
            (vm.record.name, copied)
        }
        (Side::Guest { vm, path }, Side::Here(target)) => {
            let vm = find_running(context, &vm)?;
            let copied = runtime.block_on(copy::get(&vm.dir, &path, &target));
            (vm.record.name, copied)
        }
        (Side::Here(_), Side::Here(_)) => bail!("one of the two must be VM:PATH"),
        (Side::Guest { .. }, Side::Guest { .. }) => bail!("only one of the two can be VM:PATH"),
    };
    copied.with_context(|| format!("VM '{name}'"))?;
    Ok(ExitCode::SUCCESS)
}
