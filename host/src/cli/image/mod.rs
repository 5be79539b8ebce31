//! `lazyroot image`: bringing images into the store, looking at them, naming and removing them.
//!
//! The options, the dispatch and the printing. What images are and how they are read and written is in `crate::store`;
//! files inside an image are shown by the verbs of `lazyroot store`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use lazyroot_proto::boot::INITS;
use serde_json::json;

use crate::cli::context::Context;
use crate::cli::output::{Format, output, print};
use crate::cli::upstreams::UpstreamArgs;
use crate::complain::complain;
use crate::human::size;
use crate::store::{
    Aspect, Change, Node, Progress, Rehash, Removed, Source, Store, Tree, compare_trees, fetch_between,
};
use crate::text::printable_name;

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
        /// Read everything again, also what did not change since an import before
        #[arg(long)]
        rehash: bool,
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
        #[command(flatten)]
        source: UpstreamArgs,
    },
    /// Show how an image was built, the newest step first, as its OCI configuration tells
    History {
        /// Name or digest
        image: String,
        /// How to print the list
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show what is different between two images, and what the second needs that the first does not have
    Diff {
        /// The image before
        a: String,
        /// The image after
        b: String,
        /// Show files too of which only the times differ
        #[arg(long)]
        times: bool,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
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
        ImageCommand::Import { source, name, rehash } => {
            let rehash = if rehash { Rehash::All } else { Rehash::Changed };
            import(&store, &source, name.as_deref(), rehash)
        }
        ImageCommand::Ls { format } => list(&store, format),
        ImageCommand::Inspect { image, source } => inspect(&source.open(context)?, &image),
        ImageCommand::History { image, format } => history(&store, &image, format),
        ImageCommand::Diff { a, b, times, format } => diff(&store, &a, &b, times, format),
        ImageCommand::Rm { names } => remove(&store, &names),
        ImageCommand::Tag { image, name } => store.tag(&image, &name).map(|()| ExitCode::SUCCESS),
    }
}

fn import(store: &Store, source: &Source, name: Option<&str>, rehash: Rehash) -> Result<ExitCode> {
    let image = store.import_again(source, name, rehash, &Progress::stderr())?;
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
                let size = size(image.object_bytes);
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

/// A step of the OCI configuration's history
/// ([config.md](https://github.com/opencontainers/image-spec/blob/main/config.md)).
#[derive(serde::Serialize, serde::Deserialize)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    author: Option<String>,
    /// Whether the step changed no file.
    #[serde(default)]
    empty_layer: bool,
}

#[derive(serde::Deserialize)]
struct History {
    #[serde(default)]
    history: Option<Vec<Step>>,
}

fn history(store: &Store, image: &str, format: Format) -> Result<ExitCode> {
    let image = store.resolve(image)?;
    let document = store.config_document(&image.id, image.name.as_deref());
    let document = document.context("the image has no history: it came from a folder, not from an OCI image")?;
    let history: History = serde_json::from_slice(&document).context("the image's configuration is damaged")?;
    let mut steps = history.history.unwrap_or_default();
    steps.reverse();
    output(|out| {
        if format == Format::Json {
            serde_json::to_writer_pretty(&mut *out, &steps).map_err(std::io::Error::from)?;
            return Ok(out.write_all(b"\n")?);
        }
        writeln!(out, "{:20}  FILES  CREATED BY", "CREATED")?;
        for step in &steps {
            let text = |text: &Option<String>| printable_name(text.as_deref().unwrap_or("-"));
            let mut by = text(&step.created_by);
            if let Some(comment) = &step.comment {
                by += &format!("  # {}", printable_name(comment));
            }
            let files = if step.empty_layer { "-" } else { "yes" };
            writeln!(out, "{:20.20}  {files:5}  {by}", text(&step.created))?;
        }
        Ok(())
    })
}

/// One difference as JSON has it.
#[derive(serde::Serialize)]
struct Difference {
    path: String,
    change: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    what: Vec<Aspect>,
    before: Option<u64>,
    after: Option<u64>,
}

fn diff(store: &Store, a: &str, b: &str, times: bool, format: Format) -> Result<ExitCode> {
    let (a, b) = (store.find_id(a)?, store.find_id(b)?);
    let fetch = fetch_between(&store.index(&a)?, &store.index(&b)?)?;
    let (before, after) = (store.tree(&a)?, store.tree(&b)?);
    let worth = |change: &Change| times || change.what != [Aspect::Time];
    output(|out| {
        let shown = |change: &Change| printable_name(change.path.as_os_str().as_encoded_bytes());
        if format == Format::Json {
            out.write_all(b"{\"changes\":[")?;
            let mut comma = "\n";
            compare_trees(&before, &after, |change| {
                if worth(&change) {
                    out.write_all(comma.as_bytes())?;
                    comma = ",\n";
                    let (path, kind) = (shown(&change), change_kind(&change).0);
                    let Change { before, after, what, .. } = change;
                    let difference = Difference { path, change: kind, what, before, after };
                    serde_json::to_writer(&mut *out, &difference).map_err(std::io::Error::from)?;
                }
                Ok(())
            })?;
            writeln!(out, "\n],\"fetch\":{}}}", serde_json::to_string(&fetch)?)?;
            return Ok(());
        }
        // Files and bytes, added and removed; files changed.
        let (mut added, mut removed, mut changed) = ((0, 0u64), (0, 0u64), 0);
        compare_trees(&before, &after, |change| {
            if !worth(&change) {
                return Ok(());
            }
            let (_, sign) = change_kind(&change);
            let path = shown(&change);
            match (change.before, change.after) {
                (None, after) => added = (added.0 + 1, added.1.saturating_add(after.unwrap_or(0))),
                (before, None) => removed = (removed.0 + 1, removed.1.saturating_add(before.unwrap_or(0))),
                _ => changed += 1,
            }
            let size = |size: Option<u64>| size.map_or_else(|| "-".into(), |size| size.to_string());
            let what: Vec<&str> = change.what.iter().map(|aspect| aspect.name()).collect();
            let what = if what.is_empty() { String::new() } else { format!("  ({})", what.join(", ")) };
            writeln!(out, "{sign} {:>12} {:>12}  {path}{what}", size(change.before), size(change.after))?;
            Ok(())
        })?;
        writeln!(
            out,
            "{} added ({}), {} removed ({}), {changed} changed",
            added.0,
            size(added.1),
            removed.0,
            size(removed.1),
        )?;
        writeln!(
            out,
            "who has the first fetches at most {} in {} objects for the second, and has {} in {}",
            size(fetch.new_bytes),
            fetch.new_objects,
            size(fetch.shared_bytes),
            fetch.shared_objects,
        )?;
        Ok(())
    })
}

fn change_kind(change: &Change) -> (&'static str, char) {
    match (change.before, change.after) {
        (None, _) => ("added", '+'),
        (_, None) => ("removed", '-'),
        _ => ("changed", '~'),
    }
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
                complain(format_args!("{error:#}"));
            }
        }
    }
    if freed {
        complain("objects that no image needs stay until 'lazyroot store gc'");
    }
    print(&text)?;
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        failed => Err(anyhow!("{failed} of {} could not be removed", names.len())),
    }
}
