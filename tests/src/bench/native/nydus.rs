//! nydusd on a RAFS image, with all content in its cache of blobs on this machine's disk: a host that has fetched the
//! image before. Nothing is verified, as by default.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::mounted::Served;
use super::{Inputs, Mounted, System};
use crate::bench::inputs::run;
use crate::inputs::BENCH_TOOLS;

struct Nydus {
    image: PathBuf,
    about: String,
}

/// Makes the image, and reads all of it once to fill the cache.
pub fn prepare(inputs: &Inputs) -> Result<Box<dyn System>> {
    program("nydusd")?;
    let image = inputs.made("nydus", |path| {
        for dir in ["blobs", "cache", "mnt"] {
            fs::create_dir_all(path.join(dir))?;
        }
        let mut create = program("nydus-image")?;
        create.args(["create", "--log-level", "error", "--compressor", "none", "--bootstrap"]);
        run(create.arg(path.join("bootstrap")).arg("--blob-dir").arg(path.join("blobs")).arg(&inputs.tree))?;
        fill(path)
    })?;
    let about = format!("{}, cache full, nothing verified; image and cache {}", version(), image.about);
    Ok(Box::new(Nydus { image: image.path, about }))
}

fn program(name: &str) -> Result<Command> {
    let path = BENCH_TOOLS.path().join("bin").join(name);
    ensure!(path.exists(), "{name} is not there: 'cargo install nydus-rs' failed");
    Ok(Command::new(path))
}

/// As scripts/lib.sh has noted it: the program itself says "unknown".
fn version() -> String {
    let entries = fs::read_dir(BENCH_TOOLS.path()).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter_map(|name| name.strip_prefix('.').map(str::to_owned))
        .find(|name| name.starts_with("nydus-rs"))
        .unwrap_or_default()
}

fn config(image: &Path) -> serde_json::Value {
    serde_json::json!({
        "device": {
            "backend": { "type": "localfs", "config": { "dir": image.join("blobs") } },
            "cache": { "type": "blobcache", "config": { "work_dir": image.join("cache") } },
        },
        "mode": "direct",
        "digest_validate": false,
        "enable_xattr": true,
    })
}

fn fill(image: &Path) -> Result<()> {
    let at = image.join("mnt");
    let _mount = mount(image, &at)?;
    let archive = Command::new("sh").args(["-c", "tar cf - -C \"$1\" . | cat >/dev/null", "sh"]).arg(at).status()?;
    ensure!(archive.success(), "cannot read all of nydus's image");
    Ok(())
}

fn mount(image: &Path, at: &Path) -> Result<Served> {
    // It names folders: the image's may have moved.
    fs::write(image.join("config.json"), config(image).to_string())?;
    let mut command = program("nydusd")?;
    command.args(["fuse", "--log-level", "error"]);
    // Else it wants a million, which not every machine allows.
    command.args(["--rlimit-nofile", "0"]);
    command.arg("--config").arg(image.join("config.json")).arg("--bootstrap").arg(image.join("bootstrap"));
    command.arg("--mountpoint").arg(at);
    Served::start(command, at).context("nydusd")
}

impl System for Nydus {
    fn mount(&self, at: &Path, _workload: &str) -> Result<Box<dyn Mounted>> {
        Ok(Box::new(mount(&self.image, at)?))
    }

    fn about(&self) -> String {
        self.about.clone()
    }
}
