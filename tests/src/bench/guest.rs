//! The workloads inside of VMs, and what serving them costs the host.
//!
//! One VM does all workloads of a round, each with its caches dropped and then once more. What its kernel has cached is
//! dropped, what the host has is not.

use anyhow::{Context, Result, bail};

use super::inputs::{Inputs, SCRIPT_PATH};
use super::peers::processor_time;
use super::plan::{Plan, title};
use super::raw::PART as COSTS;
use super::report::{Cell, Fetched, Report, Unit, cache};
use super::vm::{self, Boot, System};

/// The name of this part.
pub const PART: &str = "guest";

/// The workloads of workloads.sh.
const WORKLOADS: &[&str] = &["tar", "find", "python", "gcc", "sequential", "random"];

/// The workloads that the host's work is measured with.
const SERVED: &[&str] = &["tar", "sequential"];

/// How long the agent is watched while nothing happens, in seconds (workloads.sh).
const IDLE: f64 = 10.0;

/// What one VM showed.
#[derive(Default)]
struct Shown {
    /// Workload, cache, seconds, and bytes and requests: of the guest's disk, or of what serves the guest.
    results: Vec<(String, String, f64, Option<Fetched>)>,
    /// By workload and server, seconds of a processor.
    served: Vec<(String, String, f64)>,
    /// The agent's memory in bytes, and its share of a processor when idle.
    agent: Option<(f64, f64)>,
}

/// Runs the workloads everywhere, in an order that differs from round to round.
///
/// # Errors
/// If an essential system cannot be set up, or a VM fails twice.
pub fn run(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    let workloads = plan.workloads(WORKLOADS);
    if workloads.is_empty() {
        return Ok(());
    }
    let mut systems = vm::systems(PART, inputs, plan, report)?;
    for round in 0..plan.samples {
        fastrand::shuffle(&mut systems);
        for (name, system) in &systems {
            let cell = Cell::new(PART, title(PART, workloads[0]), cache::COLD, name);
            let shown = vm::twice_at_most(report, &cell, || sample(system.as_ref(), &workloads))?;
            add(inputs, report, name, shown)?;
        }
        eprintln!("guest: round {} of {} done", round + 1, plan.samples);
    }
    Ok(())
}

fn sample(system: &dyn System, workloads: &[&str]) -> Result<Shown> {
    let script = format!("/{SCRIPT_PATH}");
    let command: Vec<&str> = ["bash", &script, "guest"].into_iter().chain(workloads.iter().copied()).collect();
    let mut running = system.start(Boot::Command(&command))?;
    let mut shown = Shown::default();
    for workload in workloads {
        running.session().until(&format!("bench-begin {workload}"))?;
        let servers = running.servers();
        let before: Vec<_> = servers.iter().map(|(_, pid)| processor_time(*pid)).collect();
        let mut fetched = running.fetched();
        for cache in [cache::COLD, cache::WARM] {
            let (_, line) = running.session().until(&format!("bench-result {workload} {cache}"))?;
            let numbers = line.split_ascii_whitespace().skip(3).map(str::parse).collect::<Result<Vec<u64>, _>>();
            let [nanoseconds, requests, bytes] =
                numbers.ok().and_then(|numbers| numbers.try_into().ok()).context(line)?;
            let now = running.fetched();
            let of_server = now.zip(fetched).map(|(now, before)| (now.0 - before.0, now.1 - before.1));
            fetched = now;
            // Those without a disk read nothing from one.
            let of_disk = (requests > 0).then_some((bytes, requests));
            shown.results.push(((*workload).into(), cache.into(), nanoseconds as f64 / 1e9, of_disk.or(of_server)));
            if SERVED.contains(workload) && cache == cache::COLD {
                let used = servers.iter().zip(&before).filter_map(|((name, pid), before)| {
                    Some(((*workload).into(), name.clone(), processor_time(*pid)? - (*before)?))
                });
                shown.served.extend(used);
            }
        }
    }
    // Only lazyroot has an agent.
    let (_, line) = running.session().until("bench-")?;
    if line.starts_with("bench-agent") {
        let numbers: Vec<f64> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [kib, ticks] = numbers[..] else { bail!("the agent is '{line}'") };
        let share = ticks / rustix::param::clock_ticks_per_second() as f64 / IDLE;
        shown.agent = Some((kib * 1024.0, share));
    }
    Ok(shown)
}

fn add(inputs: &Inputs, report: &mut Report, name: &str, shown: Shown) -> Result<()> {
    for (workload, cache, seconds, fetched) in shown.results {
        report.add(&Cell::new(PART, title(PART, &workload), &cache, name), seconds, fetched);
    }
    for workload in SERVED {
        let gib = inputs.content_bytes(workload)? as f64 / f64::from(1 << 30);
        let mut add = |system: &str, seconds: f64| {
            let title = format!("host's processor per GiB served, {}", title(PART, workload));
            report.add_in(Unit::SecondsPerGib, &Cell::new(COSTS, &title, cache::COLD, system), seconds / gib);
        };
        let servers: Vec<_> = shown.served.iter().filter(|(of, ..)| of == workload).collect();
        if !servers.is_empty() {
            add(name, servers.iter().map(|(_, _, seconds)| seconds).sum());
        }
        if servers.len() > 1 {
            servers.iter().for_each(|(_, server, seconds)| add(&format!("{name}, {server} of it"), *seconds));
        }
    }
    if let Some((bytes, share)) = shown.agent {
        report.add_in(
            Unit::Bytes,
            &Cell::new(COSTS, "guest agent's memory after the workloads", cache::WARM, name),
            bytes,
        );
        report.add_in(Unit::Processor, &Cell::new(COSTS, "guest agent's processor, idle", cache::WARM, name), share);
    }
    Ok(())
}
