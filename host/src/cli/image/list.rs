//! `lazyroot image ls`: the images of the store.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::cli::output::{Format, print};
use crate::human::size;
use crate::store::Store;

pub fn list(store: &Store, format: Format) -> Result<ExitCode> {
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
