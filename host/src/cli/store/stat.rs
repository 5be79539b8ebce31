//! `lazyroot store stat`.

use std::process::ExitCode;

use anyhow::Result;
use lazyroot_proto::ObjectId;
use serde::Serialize;

use super::file_record::{FileRecord, json_array, mode_text, timestamp};
use super::image_path::{ImagePath, image_path};
use crate::cli::output::{Format, output};
use crate::store::Store;
use crate::text::printable_name;

/// Arguments of `store stat`.
#[derive(clap::Args)]
pub struct StatArgs {
    /// Image, and a path in it: IMAGE:/PATH
    #[arg(value_name = "IMAGE:/PATH", value_parser = image_path(), required = true)]
    places: Vec<ImagePath>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A file and more of it than a list has.
#[derive(Serialize)]
struct FileDescription {
    #[serde(flatten)]
    file: FileRecord,
    inode: u64,
    /// By name; values in hex.
    attributes: std::collections::BTreeMap<String, String>,
    /// Names, or ids of those without one, of the other images with the same content.
    shared_with: Vec<String>,
}

pub(super) fn stat(args: &StatArgs, store: &Store) -> Result<ExitCode> {
    let mut descriptions = Vec::new();
    let mut texts = Vec::new();
    for place in &args.places {
        let (image, tree) = place.open(store)?;
        let entry = place.entry(&tree)?;
        let object = if entry.is_file() { tree.object(&entry)? } else { None };
        let shared_with = match object {
            Some(object) => sharers(store, &image, &object)?,
            None => vec![],
        };
        let attributes = tree.attributes(&entry)?;
        let hex = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let description = FileDescription {
            file: FileRecord::new(&tree, &entry)?,
            inode: entry.inode(),
            attributes: attributes.iter().map(|(name, value)| (printable_name(name), hex(value))).collect(),
            shared_with,
        };
        let time = timestamp(&entry).map_or_else(|| "?".into(), |time| time.format("%Y-%m-%d %H:%M:%S.%f").to_string());
        texts.push(text(&description, &mode_text(&entry), &time, &attributes));
        descriptions.push(description);
    }
    output(|out| match args.format {
        Format::Json => json_array(out, descriptions.into_iter().map(Ok)),
        Format::Table => Ok(out.write_all(texts.join("\n").as_bytes())?),
    })
}

fn text(
    description: &FileDescription,
    mode: &str,
    time: &str,
    attributes: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>,
) -> String {
    let file = &description.file;
    let mut lines = vec![
        ("path", printable_name(&file.path)),
        ("type", file.kind.to_owned()),
        ("size", file.size.to_string()),
        ("mode", format!("{} {mode}", file.mode)),
        ("owner", format!("{}:{}", file.uid, file.gid)),
        ("links", file.links.to_string()),
        ("modified", time.to_owned()),
        ("inode", description.inode.to_string()),
    ];
    let optional = [("target", &file.target), ("device", &file.device), ("object", &file.object)];
    lines.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    if file.kind == "file" && file.object.is_none() {
        lines.push(("object", "none: its content is in the manifest".into()));
    }
    if file.object.is_some() {
        let others = if description.shared_with.is_empty() {
            "no other image".into()
        } else {
            description.shared_with.join(", ")
        };
        lines.push(("shared with", others));
    }
    let mut text: String = lines.into_iter().map(|(name, value)| format!("{name:12}{value}\n")).collect();
    for (name, value) in attributes {
        text += &format!("{:12}{}=\"{}\"\n", "attribute", printable_name(name), printable_name(value));
    }
    text
}

/// The other images of the store that have an object.
fn sharers(store: &Store, image: &ObjectId, object: &ObjectId) -> Result<Vec<String>> {
    let mut sharers = Vec::new();
    for other in store.images()? {
        // One that is damaged shares nothing that anybody could have.
        if other.id != *image && store.has_object(&other.id, object).unwrap_or(false) {
            match other.names.is_empty() {
                true => sharers.push(other.id.to_string()),
                false => sharers.extend(other.names),
            }
        }
    }
    Ok(sharers)
}
