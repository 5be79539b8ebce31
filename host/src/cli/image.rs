//! `lazyroot image`: bringing images into the store, looking at them, naming and removing them.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use indicatif::HumanBytes;
use lazyroot_proto::boot::INITS;
use serde_json::json;

use super::{Context, Format, print};
use crate::store::{Node, Progress, Removed, Source, Store, Tree};

/// What to do with images.
#[derive(clap::Subcommand)]
pub enum ImageCommand {
    /// Bring an image into the store; prints its digest and name
    Import {
        /// containers-storage:NAME, docker://REF, oci:PATH[:TAG], oci-archive:PATH[:TAG] or dir:PATH
        source: Source,
        /// The image's name in the store [default: made from SOURCE]
        #[arg(long)]
        name: Option<String>,
    },
    /// List images
    Ls {
        /// How to print the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show what is in an image, as JSON
    Inspect {
        /// Name, digest, or the first 12 or more hex digits of the digest
        image: String,
    },
    /// Remove names, and images with their last name
    Rm {
        /// Names or digests; a digest removes all names of its image
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Give an image one more name
    Tag {
        /// Name or digest
        image: String,
        /// The new name
        name: String,
    },
}

/// Runs `lazyroot image`.
///
/// # Errors
/// If the store cannot be opened or the command fails.
pub fn run(command: ImageCommand, context: &Context) -> Result<ExitCode> {
    let store = Store::open(&context.home, context.store.as_deref())?;
    match command {
        ImageCommand::Import { source, name } => import(&store, &source, name.as_deref()),
        ImageCommand::Ls { format } => list(&store, format),
        ImageCommand::Inspect { image } => inspect(&store, &image),
        ImageCommand::Rm { names } => remove(&store, &names),
        ImageCommand::Tag { image, name } => store.tag(&image, &name).map(|()| ExitCode::SUCCESS),
    }
}

fn import(store: &Store, source: &Source, name: Option<&str>) -> Result<ExitCode> {
    let image = store.import(source, name, &Progress::stderr())?;
    print(&format!("{} {}\n", image.id, image.name.unwrap_or_default()))
}

fn list(store: &Store, format: Format) -> Result<ExitCode> {
    let images = store.images()?;
    let text = match format {
        Format::Json => {
            let images: Vec<_> = images
                .iter()
                .map(|image| {
                    json!({
                        "id": image.id.to_string(),
                        "names": image.names,
                        "manifest_bytes": image.manifest_bytes,
                        "objects": image.objects,
                        "object_bytes": image.object_bytes,
                        "architecture": image.architecture,
                    })
                })
                .collect();
            serde_json::to_string_pretty(&images)? + "\n"
        }
        Format::Table => {
            let width = images.iter().flat_map(|image| &image.names).map(String::len).max().unwrap_or(0).max(6);
            let mut text = format!("{:width$}  {:12}  {:>8}  {:>12}  ARCH\n", "NAME", "ID", "OBJECTS", "SIZE");
            for image in &images {
                let size = HumanBytes(image.object_bytes).to_string();
                let arch = image.architecture.as_deref().unwrap_or("-");
                let names = if image.names.is_empty() { &["<none>".to_owned()][..] } else { &image.names };
                for name in names {
                    let id = &image.id.to_hex()[..12];
                    text += &format!("{name:width$}  {id}  {:>8}  {size:>12}  {arch}\n", image.objects);
                }
            }
            text
        }
    };
    print(&text)
}

fn inspect(store: &Store, image: &str) -> Result<ExitCode> {
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
        "objects": image.index.entries().len(),
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

fn remove(store: &Store, names: &[String]) -> Result<ExitCode> {
    let mut failed = 0;
    let mut freed = false;
    let mut text = String::new();
    for name in names {
        match store.remove(name) {
            Ok(Removed::Untagged { remaining }) => {
                text += &format!("untagged {name}; still {}\n", remaining.join(", "))
            }
            Ok(Removed::Image) => {
                freed = true;
                text += &format!("removed {name}\n");
            }
            Err(error) => {
                failed += 1;
                eprintln!("lazyroot: {error:#}");
            }
        }
    }
    if freed {
        eprintln!("lazyroot: objects that no image needs stay until garbage collection");
    }
    print(&text)?;
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        failed => Err(anyhow!("{failed} of {} could not be removed", names.len())),
    }
}
