//! From the start of the hypervisor to a line of output: the first of a command, and what says that systemd has
//! reached its default target.

use std::time::Duration;

use anyhow::Result;

use super::caches::drop_host_caches;
use super::inputs::Inputs;
use super::plan::Plan;
use super::report::{Cell, Fetched, Report, cache};
use super::vm::{self, Boot, System};

/// The name of this part.
pub const PART: &str = "boot";

/// What is booted into: its name, what it says, and what that is.
struct Workload {
    name: &'static str,
    boot: Boot<'static>,
    wanted: &'static str,
}

const WORKLOADS: &[Workload] = &[
    Workload { name: "command", boot: Boot::Command(&["cat", "/etc/os-release"]), wanted: "PRETTY_NAME=" },
    // The unit bench-up of scripts/bench-inputs.sh, which also powers the VM off.
    Workload { name: "systemd", boot: Boot::Init, wanted: "lazyroot-bench-up" },
];

/// What the report calls them.
fn title(name: &str) -> &str {
    match name {
        "command" => "boot to cat /etc/os-release",
        _ => "boot of systemd to its default target",
    }
}

/// Boots everything, in an order that differs from round to round.
///
/// # Errors
/// If an essential system cannot be set up, or a VM fails twice.
pub fn run(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    let systems = vm::systems(PART, inputs, plan, report)?;
    let chosen = plan.workloads(&["command", "systemd"]);
    let workloads = WORKLOADS.iter().filter(|workload| chosen.contains(&workload.name));
    let mut order: Vec<_> =
        workloads.flat_map(|workload| systems.iter().map(move |system| (workload, system))).collect();
    for round in 0..plan.samples {
        fastrand::shuffle(&mut order);
        for (workload, (name, system)) in &order {
            if let Err(error) = system.learn(workload.boot) {
                report.about(PART, name, &format!("not run: {error:#}"));
                continue;
            }
            for cache in [cache::ALL_COLD, cache::COLD] {
                let cell = Cell::new(PART, title(workload.name), cache, name);
                let (seconds, fetched) = vm::twice_at_most(report, &cell, || {
                    if cache == cache::ALL_COLD {
                        drop_host_caches()?;
                    }
                    boot(system.as_ref(), workload)
                })?;
                report.add(&cell, seconds, fetched);
            }
        }
        eprintln!("boot: round {} of {} done", round + 1, plan.samples);
    }
    Ok(())
}

fn boot(system: &dyn System, workload: &Workload) -> Result<(f64, Option<Fetched>)> {
    let mut running = system.start(workload.boot)?;
    let (time, _): (Duration, _) = running.session().until(workload.wanted)?;
    running.end(time.as_secs_f64())
}
