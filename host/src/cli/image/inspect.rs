//! `lazyroot image inspect`: what is in an image, as JSON.

use std::process::ExitCode;

use anyhow::Result;
use lazyroot_proto::boot::INITS;
use serde_json::json;

use crate::cli::output::print;
use crate::store::{Node, Store, Tree};

pub fn inspect(store: &Store, image: &str) -> Result<ExitCode> {
    let image = store.resolve(image)?;
    let tree = image.tree()?;
    let census = tree.census()?;
    let manifest_bytes = image.manifest.metadata().map_or(0, |meta| meta.len());
    let init = INITS.iter().find(|path| tree.exists(path));
    let document = json!({
        "id": image.id.to_string(),
        "names": store.names_of(&image.id)?,
        "manifest_bytes": manifest_bytes,
        "index_id": image.index.id().to_string(),
        "objects": image.index.objects(),
        "object_bytes": image.index.total_bytes(),
        "files": census.files,
        "file_bytes": census.bytes,
        "directories": census.directories,
        "symlinks": census.symlinks,
        "init": init,
        "systemd": tree.exists("/usr/lib/systemd/systemd"),
        "kernels": kernels(&tree)?,
        "config": image.config,
    });
    print(&(serde_json::to_string_pretty(&document)? + "\n"))
}

/// Versions with a folder of modules, and whether their kernel is there too, where bootc images keep it.
fn kernels(tree: &Tree) -> Result<Vec<serde_json::Value>> {
    let mut kernels = Vec::new();
    for (version, node) in tree.list("/usr/lib/modules")?.unwrap_or_default() {
        if node == Node::Directory {
            let version = version.to_string_lossy();
            let vmlinuz = format!("/usr/lib/modules/{version}/vmlinuz");
            let boot = format!("/boot/vmlinuz-{version}");
            let path = [vmlinuz, boot].into_iter().find(|path| tree.exists(path));
            kernels.push(json!({ "version": version, "path": path }));
        }
    }
    Ok(kernels)
}
