//! `lazyroot image history`: how an image was built.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cli::output::{Format, output};
use crate::store::Store;
use crate::text::printable_name;

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

pub fn history(store: &Store, image: &str, format: Format) -> Result<ExitCode> {
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
