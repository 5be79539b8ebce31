//! Samples, and what is made of them: `results.json` for programs, a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

/// What was measured: one cell of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// What was done.
    pub workload: String,
    /// `cold` (guest caches dropped, host page cache warm) or `warm`.
    pub cache: &'static str,
    /// On what.
    pub system: String,
}

#[derive(Default)]
struct Samples {
    seconds: Vec<f64>,
    bytes_fetched: Option<u64>,
    requests: Option<u64>,
    notes: Vec<String>,
}

/// All cells of a run.
#[derive(Default)]
pub struct Report {
    cells: BTreeMap<Cell, Samples>,
    /// By workload, the system that others are compared with.
    ceilings: BTreeMap<String, String>,
}

#[derive(serde::Serialize)]
struct Row<'a> {
    workload: &'a str,
    cache: &'a str,
    system: &'a str,
    samples: usize,
    median: f64,
    p95: f64,
    unit: &'static str,
    ceiling: Option<&'a str>,
    ratio_to_ceiling: Option<f64>,
    bytes_fetched: Option<u64>,
    requests: Option<u64>,
    note: String,
}

/// The value that `share` (0 to 1) of the sorted samples do not exceed.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

impl Report {
    /// Adds a sample: seconds, and, where a server counted them, payload bytes and requests of the last sample.
    pub fn add(&mut self, cell: Cell, seconds: f64, fetched: Option<(u64, u64)>) {
        let samples = self.cells.entry(cell).or_default();
        samples.seconds.push(seconds);
        if let Some((bytes, requests)) = fetched {
            (samples.bytes_fetched, samples.requests) = (Some(bytes), Some(requests));
        }
    }

    /// Adds a remark to a cell; the same again changes nothing.
    pub fn note(&mut self, cell: &Cell, note: &str) {
        let notes = &mut self.cells.entry(cell.clone()).or_default().notes;
        if !notes.iter().any(|known| known == note) {
            notes.push(note.into());
        }
    }

    /// Names the system that the others' medians are divided by in this workload.
    pub fn compare(&mut self, workload: &str, ceiling: &str) {
        self.ceilings.insert(workload.into(), ceiling.into());
    }

    fn median(&self, cell: &Cell) -> Option<f64> {
        let mut seconds = self.cells.get(cell)?.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        (!seconds.is_empty()).then(|| quantile(&seconds, 0.5))
    }

    fn rows<'a>(&'a self) -> Vec<Row<'a>> {
        let row = |cell: &'a Cell, samples: &'a Samples| {
            let mut seconds = samples.seconds.clone();
            seconds.sort_by(f64::total_cmp);
            let median = self.median(cell)?;
            let ceiling = self.ceilings.get(&cell.workload).map(String::as_str);
            let divisor = ceiling.and_then(|system| self.median(&Cell { system: system.into(), ..cell.clone() }));
            Some(Row {
                workload: &cell.workload,
                cache: cell.cache,
                system: &cell.system,
                samples: seconds.len(),
                median,
                p95: quantile(&seconds, 0.95),
                unit: "s",
                ceiling,
                ratio_to_ceiling: divisor.map(|divisor| median / divisor),
                bytes_fetched: samples.bytes_fetched,
                requests: samples.requests,
                note: samples.notes.join("; "),
            })
        };
        self.cells.iter().filter_map(|(cell, samples)| row(cell, samples)).collect()
    }

    /// The table in Markdown.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| workload | cache | system | median | p95 | ratio to ceiling | bytes fetched | requests | note |\n\
             |---|---|---|---:|---:|---:|---:|---:|---|\n",
        );
        let optional = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        for row in self.rows() {
            let ratio = row.ratio_to_ceiling.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let (median, p95) = (row.median * 1e3, row.p95 * 1e3);
            let (bytes, requests) = (optional(row.bytes_fetched), optional(row.requests));
            let (workload, cache, system, note) = (row.workload, row.cache, row.system, row.note);
            writeln!(
                table,
                "| {workload} | {cache} | {system} | {median:.1} ms | {p95:.1} ms | {ratio} | {bytes} | {requests} \
                 | {note} |"
            )
            .expect("writing to a String cannot fail");
        }
        table
    }

    /// Writes `results.json` and `table.md`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::write(folder.join("results.json"), serde_json::to_vec_pretty(&self.rows())?)?;
        std::fs::write(folder.join("table.md"), self.table())?;
        Ok(())
    }
}
