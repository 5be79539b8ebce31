//! `make bench`: lazyroot against what it replaces, in one run, on real workloads: its data plane against a local
//! composefs mount, its VMs against VMs with a ready-made disk, its launches against launches of a smaller image.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lazyroot_tests::bench::report::Report;
use lazyroot_tests::bench::{boot, launch, native};

/// What is measured: a name, and what measures it with its files in a folder.
type Part = (&'static str, fn(&Path, &mut Report) -> Result<()>);

const PARTS: &[Part] = &[("native", native::run), ("boot", boot::run), ("launch", launch::run)];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().context("usage: bench FOLDER [native|boot|launch]...; results go to FOLDER")?;
    let chosen: Vec<String> = arguments.collect();
    let unknown = chosen.iter().find(|name| PARTS.iter().all(|(part, _)| part != name));
    ensure!(unknown.is_none(), "there is no part {unknown:?}");
    let out = Path::new(&out);
    std::fs::create_dir_all(out)?;
    let mut report = Report::default();
    for (name, run) in PARTS {
        if chosen.is_empty() || chosen.iter().any(|other| other == name) {
            run(out, &mut report).with_context(|| format!("the part {name}"))?;
        }
    }
    report.write(out)?;
    print!("{}", report.table());
    Ok(())
}
