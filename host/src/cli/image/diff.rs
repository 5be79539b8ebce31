//! `lazyroot image diff`: what is different between two images.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::output::{Format, output};
use crate::human::size;
use crate::store::{Aspect, Change, Store, compare_trees, fetch_between};
use crate::text::printable_name;

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

pub fn diff(store: &Store, a: &str, b: &str, times: bool, format: Format) -> Result<ExitCode> {
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
