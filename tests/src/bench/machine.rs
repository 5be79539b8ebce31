//! On what was measured.

use crate::inputs::BENCH_HOME;
use std::fmt;
use std::fs;
use std::process::Command;

/// The machine and the programs that figures depend on.
pub struct Machine {
    processor: String,
    kernel: String,
    file_system: String,
    qemu: String,
    guest_kernel: String,
    revision: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_else(|| "unknown".into())
        };
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
        };
        // What decides how fast it hashes.
        let with = |flag| if field("flags").split(' ').any(|other| other == flag) { "with" } else { "without" };
        let (sha, avx512) = (with("sha_ni"), with("avx512bw"));
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let qemu = said(&format!("qemu-system-{}", std::env::consts::ARCH), &["--version"]);
        let guest_kernel = crate::kernel_deb();
        Self {
            processor: format!("{cpus} processors, {}, {sha} SHA instructions, {avx512} AVX-512", field("model name")),
            // Its version: what follows names somebody's build of it.
            kernel: said("uname", &["-sr"]).split(['-', '+']).next().unwrap_or_default().to_owned(),
            file_system: said("stat", &["-f", "-c", "%T", &BENCH_HOME.path().to_string_lossy()]),
            qemu: qemu.trim_start_matches("QEMU emulator version ").to_owned(),
            guest_kernel: guest_kernel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            revision: said("git", &["describe", "--always", "--dirty"]),
        }
    }
}

impl fmt::Display for Machine {
    /// A Markdown table.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("machine", &self.processor),
            ("host's kernel", &self.kernel),
            ("store's file system", &self.file_system),
            ("QEMU (TCG)", &self.qemu),
            ("guests' kernel", &self.guest_kernel),
            ("lazyroot", &self.revision),
        ];
        writeln!(formatter, "| | |\n|---|---|")?;
        rows.iter().try_for_each(|(name, value)| writeln!(formatter, "| {name} | {value} |"))
    }
}
