//! `make bench`: lazyroot against what it replaces, in one run, on real workloads.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use lazyroot_tests::bench::inputs::Inputs;
use lazyroot_tests::bench::machine::Machine;
use lazyroot_tests::bench::plan::Plan;
use lazyroot_tests::bench::report::Report;
use lazyroot_tests::bench::{boot, crowd, exec, guest, import, launch, look, native, raw, upstream};

/// A part: its name, and what measures it.
type Part = (&'static str, fn(&Inputs, &Plan, &mut Report) -> Result<()>);

const PARTS: &[Part] = &[
    (native::PART, native::run),
    (guest::PART, guest::run),
    (boot::PART, boot::run),
    (launch::PART, launch::run),
    (exec::PART, exec::run),
    (raw::PART, raw::run),
    (upstream::BUCKET_PART, upstream::bucket),
    (upstream::PEER_PART, upstream::peer),
    (import::PART, import::run_part),
    (look::PART, look::run),
    (crowd::PART, crowd::run),
];

/// Measure lazyroot and what it is compared with
#[derive(clap::Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Folder for results, and for what is kept between runs
    folder: PathBuf,
    /// Only this part: native, guest, boot, launch, exec, raw, bucket, peer, import, look or crowd; may be given several
    /// times
    #[arg(long = "part", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(names()))]
    parts: Vec<String>,
    #[command(flatten)]
    plan: Plan,
    /// Keep what earlier runs measured of other workloads
    #[arg(long)]
    add: bool,
    /// Keep what earlier runs measured of these workloads too: many short runs make one long one
    #[arg(long)]
    more: bool,
    /// Measure nothing; write the last results into this folder of the book
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

fn names() -> Vec<&'static str> {
    PARTS.iter().map(|(name, _)| *name).collect()
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(docs) = arguments.docs {
        return Report::load(&arguments.folder)?.write_docs(&docs, &Machine::this());
    }
    let inputs = Inputs::prepare(&arguments.folder)?;
    let mut report = if arguments.add || arguments.more { Report::load(&arguments.folder)? } else { Report::default() };
    for (name, run) in PARTS {
        if arguments.parts.is_empty() || arguments.parts.iter().any(|other| other == name) {
            let mut measured = Report::default();
            run(&inputs, &arguments.plan, &mut measured).with_context(|| format!("the part {name}"))?;
            if !arguments.more {
                report.forget(&measured);
            }
            report.merge(measured);
            // All parts take hours: what one of them measured is kept if a later one fails.
            report.write(&arguments.folder)?;
        }
    }
    print!("{}", report.tables());
    Ok(())
}
