//! Samples, and what is made of them: JSON for programs, tables and plots for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::plot;

/// Names of the states of caches.
pub mod cache {
    /// The guest's dropped, the host's page cache warm.
    pub const COLD: &str = "cold";
    /// The guest's and the host's dropped.
    pub const ALL_COLD: &str = "all-cold";
    /// Both warm.
    pub const WARM: &str = "warm";
}

/// What was measured: one cell of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    /// The part of the benchmark.
    pub part: String,
    /// What was done.
    pub workload: String,
    /// In which state of the caches.
    pub cache: String,
    /// On what.
    pub system: String,
}

impl Cell {
    /// A cell.
    pub fn new(part: &str, workload: &str, cache: &str, system: &str) -> Self {
        let [part, workload, cache, system] = [part, workload, cache, system].map(str::to_owned);
        Self { part, workload, cache, system }
    }
}

/// Payload bytes and requests that somebody counted.
pub type Fetched = (u64, u64);

/// What samples are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Seconds.
    #[default]
    #[serde(rename = "s")]
    Seconds,
    /// Bytes.
    #[serde(rename = "B")]
    Bytes,
    /// Bytes per second.
    #[serde(rename = "B/s")]
    BytesPerSecond,
    /// Seconds of a processor per GiB.
    #[serde(rename = "s/GiB")]
    SecondsPerGib,
    /// Share of one processor.
    #[serde(rename = "CPU")]
    Processor,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value >= 10.0 => format!("{value:.1} s"),
            Self::Seconds if value >= 1.0 => format!("{value:.2} s"),
            Self::Seconds if value >= 0.1 => format!("{:.0} ms", value * 1e3),
            Self::Seconds if value >= 1e-3 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{:.1} µs", value * 1e6),
            Self::Bytes if value >= 1e6 => format!("{:.1} MB", value / 1e6),
            Self::Bytes => format!("{:.1} KiB", value / 1024.0),
            Self::BytesPerSecond => format!("{:.2} GB/s", value / 1e9),
            Self::SecondsPerGib => format!("{value:.2} s/GiB"),
            Self::Processor => format!("{:.1} %", value * 100.0),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Samples {
    values: Vec<f64>,
    unit: Unit,
    bytes_fetched: Option<u64>,
    requests: Option<u64>,
    /// Processor time of each sample, all processes together, in seconds.
    #[serde(default)]
    processor: Vec<f64>,
    /// Ratios to samples of the ceiling that were taken beside these.
    #[serde(default)]
    pairs: Vec<f64>,
    /// Samples that were thrown away and taken again.
    #[serde(default)]
    retaken: usize,
    notes: Vec<String>,
}

impl Samples {
    fn median(&self) -> Option<f64> {
        quantile(&self.values, 0.5)
    }

    /// What is to be known about them.
    fn remarks(&self) -> Vec<String> {
        let retaken = (self.retaken > 0).then(|| format!("{} more were thrown away", self.retaken));
        self.notes.iter().cloned().chain(retaken).collect()
    }
}

/// The value that `share` (0 to 1) of the samples do not exceed; `None` of none.
fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// All cells of a run.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    #[serde(with = "pairs")]
    cells: BTreeMap<Cell, Samples>,
    /// By part, the system that others are compared with.
    ceilings: BTreeMap<String, String>,
    /// By part and system, what is to be known about it: its version, what making its image took, or why it is absent.
    #[serde(with = "pairs")]
    systems: BTreeMap<(String, String), String>,
}

/// Maps whose keys are no strings, as JSON's have to be: a list of keys with their values.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'a, K: Deserialize<'a> + Ord, V: Deserialize<'a>, D: Deserializer<'a>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}

#[derive(Serialize)]
struct Row<'a> {
    part: &'a str,
    workload: &'a str,
    cache: &'a str,
    system: &'a str,
    samples: usize,
    median: Option<f64>,
    p95: Option<f64>,
    unit: Unit,
    ceiling: Option<&'a str>,
    ratio_to_ceiling: Option<f64>,
    bytes_fetched: Option<u64>,
    requests: Option<u64>,
    /// Median, in seconds.
    processor_time: Option<f64>,
    note: String,
}

impl Report {
    /// Adds a sample, in seconds, and, where they were counted, payload bytes and requests of the last sample.
    pub fn add(&mut self, cell: &Cell, seconds: f64, fetched: Option<Fetched>) {
        self.add_in(Unit::Seconds, cell, seconds);
        if let Some(fetched) = fetched {
            self.fetched(cell, fetched);
        }
    }

    /// Adds a sample in another unit, and says so to who waits for it.
    pub fn add_in(&mut self, unit: Unit, cell: &Cell, value: f64) {
        eprintln!("{}: {}, {}, {}: {}", cell.part, cell.workload, cell.cache, cell.system, unit.show(value));
        let samples = self.cells.entry(cell.clone()).or_default();
        samples.unit = unit;
        samples.values.push(value);
    }

    /// Payload bytes and requests that a sample took.
    pub fn fetched(&mut self, cell: &Cell, (bytes, requests): Fetched) {
        let samples = self.cells.entry(cell.clone()).or_default();
        (samples.bytes_fetched, samples.requests) = (Some(bytes), Some(requests));
    }

    /// Processor time that everything together used during a sample, in seconds.
    pub fn processor_time(&mut self, cell: &Cell, seconds: f64) {
        self.cells.entry(cell.clone()).or_default().processor.push(seconds);
    }

    /// Adds the ratio of a sample to one of the ceiling that was taken with it. What a cell's ratio is then made of: it is
    /// more exact than medians of samples from different moments.
    pub fn pair(&mut self, cell: &Cell, ratio: f64) {
        self.cells.entry(cell.clone()).or_default().pairs.push(ratio);
    }

    /// Counts a sample that is thrown away because the machine's caches did not stay as its cell says.
    pub fn retake(&mut self, cell: &Cell) {
        eprintln!("{}: {}, {}, {}: taken again", cell.part, cell.workload, cell.cache, cell.system);
        self.cells.entry(cell.clone()).or_default().retaken += 1;
    }

    /// Adds a remark to a cell; the same again changes nothing.
    pub fn note(&mut self, cell: &Cell, note: &str) {
        let notes = &mut self.cells.entry(cell.clone()).or_default().notes;
        if !notes.iter().any(|known| known == note) {
            notes.push(note.into());
        }
    }

    /// Names the system that the others' medians are divided by in a part.
    pub fn compare(&mut self, part: &str, ceiling: &str) {
        self.ceilings.insert(part.into(), ceiling.into());
    }

    /// Says what is to be known about a system, or why it is absent.
    pub fn about(&mut self, part: &str, system: &str, words: &str) {
        // One line, and no end of a table's cell.
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        self.systems.insert((part.into(), system.into()), words);
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let row = |(cell, samples)| self.row(cell, samples);
        let absent = |(part, system): &(String, String)| {
            self.cells.keys().all(|cell| (&cell.part, &cell.system) != (part, system))
        };
        let absent = self.systems.iter().filter(|(key, _)| absent(key)).map(|((part, system), why)| Row {
            part,
            workload: "",
            cache: "",
            system,
            samples: 0,
            median: None,
            p95: None,
            unit: Unit::default(),
            ceiling: None,
            ratio_to_ceiling: None,
            bytes_fetched: None,
            requests: None,
            processor_time: None,
            note: why.clone(),
        });
        let mut rows: Vec<_> = self.cells.iter().map(row).chain(absent).collect();
        // What others are compared with, then ours, then the others.
        rows.sort_by_key(|row| {
            let rank = (Some(row.system) != row.ceiling, !row.system.starts_with("lazyroot"));
            (row.part, row.workload, row.cache, rank, row.system)
        });
        rows
    }

    fn row<'a>(&'a self, cell: &'a Cell, samples: &'a Samples) -> Row<'a> {
        let median = samples.median();
        let ceiling = self.ceilings.get(&cell.part).map(String::as_str);
        let divisor = ceiling.and_then(|system| self.cells.get(&Cell { system: system.into(), ..cell.clone() }));
        let divisor = divisor.filter(|divisor| divisor.unit == samples.unit).and_then(Samples::median);
        let paired = quantile(&samples.pairs, 0.5);
        let about = self.systems.get(&(cell.part.clone(), cell.system.clone()));
        Row {
            part: &cell.part,
            workload: &cell.workload,
            cache: &cell.cache,
            system: &cell.system,
            samples: samples.values.len(),
            median,
            p95: quantile(&samples.values, 0.95),
            unit: samples.unit,
            ceiling,
            ratio_to_ceiling: paired.or_else(|| divisor.and_then(|divisor| Some(median? / divisor))),
            bytes_fetched: samples.bytes_fetched,
            requests: samples.requests,
            processor_time: quantile(&samples.processor, 0.5),
            note: samples.remarks().into_iter().chain(about.cloned()).collect::<Vec<_>>().join("; "),
        }
    }

    /// The tables of all parts in Markdown.
    pub fn tables(&self) -> String {
        let parts: BTreeSet<&str> = self.cells.keys().map(|cell| cell.part.as_str()).collect();
        parts.into_iter().map(|part| format!("## {}\n\n{}", heading(part), self.table(part))).collect()
    }

    fn table(&self, part: &str) -> String {
        let mut table = String::new();
        let mut line = |words: std::fmt::Arguments<'_>| writeln!(table, "{words}").expect("a String takes all");
        if let Some(ceiling) = self.ceilings.get(part) {
            line(format_args!("Ratios are to {ceiling}. Medians and 95th percentiles.\n"));
        }
        line(format_args!(
            "| workload | cache | system | ratio | median | p95 | samples | bytes fetched | requests | processor time | note |"
        ));
        line(format_args!("|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|"));
        let mut last = ("", "");
        for row in self.rows().iter().filter(|row| row.part == part && row.samples > 0) {
            let key = (row.workload, row.cache);
            let (workload, cache) = if key == last { ("", "") } else { key };
            last = key;
            let show = |value: Option<f64>| value.map_or_else(String::new, |value| row.unit.show(value));
            let count = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
            let megabytes = row.bytes_fetched.map_or_else(String::new, |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
            let ratio = row.ratio_to_ceiling.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let samples = &self.cells[&Cell::new(part, row.workload, row.cache, row.system)];
            line(format_args!(
                "| {} | {cache} | {} | {ratio} | {} | {} | {} | {megabytes} | {} | {} | {} |",
                // A bar would end the table's cell.
                workload.replace('|', "\\|"),
                row.system,
                show(row.median),
                show(row.p95),
                row.samples,
                count(row.requests),
                show(row.processor_time),
                samples.remarks().join("; ")
            ));
        }
        let mut about = self.systems.iter().filter(|((of, _), _)| of == part).peekable();
        if about.peek().is_some() {
            line(format_args!("\n| system | |\n|---|---|"));
        }
        for ((_, system), words) in about {
            line(format_args!("| {system} | {words} |"));
        }
        line(format_args!(""));
        table
    }

    /// What an earlier run kept in `folder`, if there was one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("samples.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&fs::read(&path)?).with_context(|| path.display().to_string())
    }

    /// Forgets earlier samples of the workloads that are sampled now: they are of another run.
    pub fn forget(&mut self, newer: &Self) {
        let sampled: BTreeSet<_> = newer.cells.keys().map(|cell| (&cell.part, &cell.workload)).collect();
        self.cells.retain(|cell, _| !sampled.contains(&(&cell.part, &cell.workload)));
    }

    /// Takes in what another run measured.
    pub fn merge(&mut self, newer: Self) {
        for (cell, new) in newer.cells {
            let samples = self.cells.entry(cell).or_default();
            let values = samples.values.drain(..).chain(new.values).collect();
            let pairs = samples.pairs.drain(..).chain(new.pairs).collect();
            let retaken = samples.retaken + new.retaken;
            *samples = Samples { values, pairs, retaken, ..new };
        }
        self.ceilings.extend(newer.ceilings);
        self.systems.extend(newer.systems);
    }

    /// Writes `results.json`, `table.md` and the plots, and the samples themselves for a later run to add to.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("results.json"), serde_json::to_vec_pretty(&self.rows())?)?;
        fs::write(folder.join("table.md"), self.tables())?;
        for (name, plot) in self.plots() {
            fs::write(folder.join(name), plot)?;
        }
        fs::write(folder.join("samples.json"), serde_json::to_vec(self)?)?;
        Ok(())
    }

    /// Writes the page of figures and its plots into the book.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_docs(&self, folder: &Path, machine: &Machine) -> Result<()> {
        let plots = self.plots();
        let mut page = format!(
            "# Figures\n\nWritten by `make bench-docs`; [Performance](performance.md) says how to read them.\n\n{machine}\n"
        );
        for (name, plot) in &plots {
            fs::write(folder.join(name), plot)?;
            writeln!(page, "![]({name})\n").expect("a String takes all");
        }
        page.push_str(self.tables().trim_end());
        page.push('\n');
        fs::write(folder.join("figures.md"), page)?;
        Ok(())
    }

    /// File names and contents of the plots: of every part that has a ceiling, the ratios to it with cold caches.
    fn plots(&self) -> Vec<(String, String)> {
        let rows = self.rows();
        let plot = |(part, ceiling): (&String, &String)| {
            let rows = rows.iter().filter(|row| row.part == part && row.cache == cache::COLD);
            let bars: Vec<_> = rows
                .filter_map(|row| {
                    let (median, ratio) = (row.unit.show(row.median?), row.ratio_to_ceiling?);
                    Some(plot::Bar {
                        group: row.workload,
                        name: row.system,
                        value: ratio,
                        label: format!("{ratio:.2}  ({median})"),
                    })
                })
                .collect();
            let title = format!("{}, cold: time, as a multiple of {ceiling} (less is better)", heading(part));
            (!bars.is_empty()).then(|| (format!("bench-{part}.svg"), plot::bars(&title, &bars)))
        };
        self.ceilings.iter().filter_map(plot).collect()
    }
}

/// A part's name for people.
fn heading(part: &str) -> &str {
    match part {
        "native" => "Mounts on the host",
        "guest" => "In a VM",
        "boot" => "Boots",
        "launch" => "Launches",
        "exec" => "Programs in a running VM",
        "raw" => "Limits, and what lazyroot itself costs",
        "bucket" => "Boots of images in a bucket",
        "peer" => "Reads through another lazyroot",
        "import" => "Imports",
        "look" => "Looking into a large image",
        "crowd" => "A thousand sessions",
        other => other,
    }
}
