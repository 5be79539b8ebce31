//! `make bench`: lazyroot's data plane against its ceiling, in one run, on real workloads.

use std::path::Path;

use anyhow::{Context, Result};
use lazyroot_tests::bench::{native, report::Report};

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).context("usage: bench FOLDER, where results.json and table.md go")?;
    let out = Path::new(&out);
    std::fs::create_dir_all(out)?;
    let mut report = Report::default();
    native::run(out, &mut report)?;
    report.write(out)?;
    print!("{}", report.table());
    Ok(())
}
