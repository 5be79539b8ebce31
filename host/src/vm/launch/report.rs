//! How a launch went, for people and programs.

use std::fs;
use std::time::Duration;

use crate::serve::Snapshot;
use crate::store::Traffic;

/// How a launch went.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// How the guest's instructions ran: `kvm`, `tcg` or `vz`.
    pub accelerator: String,
    /// From the launch to the hypervisor's start.
    pub hypervisor_started: Duration,
    /// From the hypervisor's start until guest-init reached the host.
    pub guest_init: Option<Duration>,
    /// From the hypervisor's start until the command ran.
    pub command_started: Option<Duration>,
    /// The guest's own clock when the image was mounted, since its kernel started.
    pub guest_clock_mounted: Option<Duration>,
    /// What was served.
    pub served: Snapshot,
    /// Bytes of all the image's objects.
    pub image_bytes: u64,
    /// The image's objects.
    pub image_objects: u64,
    /// Bytes that this launch caused to be written to the host's disks, all its processes together.
    pub disk_bytes_written: u64,
    /// What came from upstreams, if there are any.
    pub upstream: Option<Traffic>,
}

impl Report {
    /// The report for people.
    pub fn lines(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let seconds = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{:.2} s", time.as_secs_f64()));
        let share = 100.0 * self.served.bytes as f64 / self.image_bytes.max(1) as f64;
        let upstream = self.upstream.map(|traffic| {
            let Traffic { requests, bytes, damaged, .. } = traffic;
            format!("\nfrom upstreams            {:.1} MiB, {requests} requests, {damaged} damaged", mib(bytes))
        });
        format!(
            "hypervisor started after  {:.0} ms ({})\n\
             guest init after          {}\n\
             command after             {}\n\
             bytes fetched             {:.1} MiB of {:.1} MiB in the image ({share:.1} %)\n\
             objects fetched           {} of {}\n\
             requests                  {}\n\
             written to host disk      {} KiB{}",
            self.hypervisor_started.as_secs_f64() * 1e3,
            self.accelerator,
            seconds(self.guest_init),
            seconds(self.command_started),
            mib(self.served.bytes),
            mib(self.image_bytes),
            self.served.objects,
            self.image_objects,
            self.served.requests,
            self.disk_bytes_written >> 10,
            upstream.unwrap_or_default(),
        )
    }
}

/// What this process and `others` caused to be written to disks, in bytes, as far as the system says
/// (`write_bytes` of proc_pid_io(5)).
pub(super) fn disk_bytes_written(others: &[u32]) -> u64 {
    let of = |pid: &str| {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse::<u64>().ok()
    };
    let others = others.iter().filter_map(|pid| of(&pid.to_string()));
    of("self").into_iter().chain(others).sum()
}
