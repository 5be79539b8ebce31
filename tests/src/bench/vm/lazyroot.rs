//! `lazyroot run`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, bail};
use lazyroot::store::{Profile, ProfileFile};
use lazyroot::vm::launch;
use serde::Deserialize;

use super::{Boot, CPUS, MEMORY_MIB, Running, Session, System};
use crate::bench::inputs::{IMAGE, Inputs};
use crate::bench::report::Fetched;
use crate::lazyroot::program;

/// Of the VM; one runs at a time.
const NAME: &str = "bench";

struct Lazyroot {
    file: ProfileFile,
}

/// Every boot is the first.
pub fn without_profile(inputs: &Inputs) -> Result<Box<dyn System>> {
    Ok(Box::new(Lazyroot { file: inputs.store.profile(&inputs.image.id) }))
}

impl System for Lazyroot {
    fn start(&self, boot: Boot<'_>) -> Result<Box<dyn Running>> {
        self.file.remove()?;
        Ok(Box::new(launched(IMAGE, boot)?))
    }

    fn about(&self) -> String {
        "lazyroot run; nothing was made beforehand but the image in the store; everything is verified".into()
    }
}

struct WithProfile {
    file: ProfileFile,
    /// By what was booted into.
    profiles: RefCell<HashMap<String, Profile>>,
}

/// A boot before this one did the same.
pub fn with_profile(inputs: &Inputs) -> Result<Box<dyn System>> {
    Ok(Box::new(WithProfile { file: inputs.store.profile(&inputs.image.id), profiles: RefCell::default() }))
}

impl System for WithProfile {
    fn start(&self, boot: Boot<'_>) -> Result<Box<dyn Running>> {
        match self.profiles.borrow().get(&format!("{boot:?}")) {
            Some(profile) => self.file.write(profile)?,
            None => bail!("no profile of this boot was recorded"),
        }
        Ok(Box::new(launched(IMAGE, boot)?))
    }

    fn learn(&self, boot: Boot<'_>) -> Result<()> {
        let key = format!("{boot:?}");
        if !self.profiles.borrow().contains_key(&key) {
            self.file.remove()?;
            launched(IMAGE, boot)?.report()?;
            let profile = self.file.read().context("lazyroot wrote no profile of a boot")?;
            self.profiles.borrow_mut().insert(key, profile);
        }
        Ok(())
    }

    fn about(&self) -> String {
        "the same, after a boot into the same".into()
    }
}

/// Starts a VM of `image` in emulation.
pub fn launched(image: &str, boot: Boot<'_>) -> Result<Launched> {
    let mut program = program();
    // As the others, which have no network either.
    program.args(["run", "--name", NAME, "--report=json", "--hypervisor", "qemu:tcg", "--net", "none"]);
    program.args(["--cpus", &CPUS.to_string(), "--memory", &MEMORY_MIB.to_string(), image]);
    if let Boot::Command(command) = boot {
        program.arg("--").args(command);
    }
    Ok(Launched(Session::start(&mut program)?))
}

/// Of what `lazyroot stats` says.
#[derive(Deserialize)]
struct Sent {
    sent_bytes: u64,
    requests: u64,
}

/// A VM of lazyroot's.
pub struct Launched(Session);

impl Launched {
    /// Waits for a line, and for the end; lazyroot's own report.
    pub fn finish(mut self, wanted: &str) -> Result<launch::Report> {
        self.0.until(wanted)?;
        self.report()
    }

    fn report(self) -> Result<launch::Report> {
        let errors = self.0.finish()?;
        let report = errors.lines().last().unwrap_or_default();
        serde_json::from_str(report).with_context(|| format!("lazyroot's report is '{report}'"))
    }
}

impl Running for Launched {
    fn session(&mut self) -> &mut Session {
        &mut self.0
    }

    fn servers(&self) -> Vec<(String, u32)> {
        let pid = self.0.pid();
        let of_thread = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children: Vec<String> = threads.map(of_thread).collect();
        let children =
            children.iter().flat_map(|list| list.split_ascii_whitespace()).filter_map(|pid| pid.parse().ok());
        let is_device = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("vhost-device"))
        };
        let devices = children.filter(is_device).map(|pid| ("vhost-device-vsock".to_owned(), pid));
        [("lazyroot".to_owned(), pid)].into_iter().chain(devices).collect()
    }

    fn fetched(&self) -> Option<Fetched> {
        let mut program = program();
        let output = program.args(["stats", NAME, "--format", "json"]).output().ok()?;
        let Sent { sent_bytes, requests } = serde_json::from_slice(&output.stdout).ok()?;
        Some((sent_bytes, requests))
    }

    fn end(self: Box<Self>, seconds: f64) -> Result<(f64, Option<Fetched>)> {
        let report = self.report()?;
        let seconds = seconds - report.hypervisor_started.as_secs_f64();
        Ok((seconds, Some((report.served.bytes, report.served.requests))))
    }
}
