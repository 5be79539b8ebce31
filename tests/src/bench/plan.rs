//! What of the benchmark is to run.

/// The user's choice. An empty list chooses everything.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Only this system, by (part of) its name; may be given several times. What ratios are relative to always runs
    #[arg(long = "system", value_name = "NAME")]
    pub systems: Vec<String>,
    /// Only this workload: tar, find, python, gcc, sequential, random, command or systemd; may be given several times
    #[arg(long = "workload", value_name = "NAME")]
    pub workloads: Vec<String>,
    /// Samples of every workload on every system in every state of the caches
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub samples: u32,
}

impl Plan {
    /// Whether a system takes part.
    pub fn has_system(&self, name: &str) -> bool {
        self.systems.is_empty() || self.systems.iter().any(|part| name.contains(part.as_str()))
    }

    /// Those of `workloads` that are chosen.
    pub fn workloads<'a>(&self, workloads: &[&'a str]) -> Vec<&'a str> {
        let chosen = |name: &&str| self.workloads.is_empty() || self.workloads.iter().any(|other| other == name);
        workloads.iter().copied().filter(chosen).collect()
    }
}

/// What the report calls a workload of workloads.sh.
pub fn title(part: &str, workload: &str) -> &'static str {
    match (part, workload) {
        (super::guest::PART, "tar") => "tar of 2,700 files",
        (_, "tar") => "tar cf - / | cat",
        (_, "find") => "find / -printf %s",
        (_, "python") => "python imports",
        (super::guest::PART, "gcc") => "gcc, 4 files of zlib",
        (_, "gcc") => "gcc, zlib",
        (_, "sequential") => "128 MiB sequentially",
        _ => "random read of 4 KiB",
    }
}
