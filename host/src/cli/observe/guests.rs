//! Those whose reads can be looked at: VMs, mounts, and the guests of servers.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::cli::context::Context;
use crate::serve::report::{self, Kind, ServerStats, ServingProcess, SessionStats};
use crate::store::Trace;
use crate::vm::instance::{State, Vms};

/// One guest.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is.
    pub kind: Kind,
    /// The VM's name, the mount's folder, or `serve-PID/SESSION`.
    pub name: String,
    /// The image's name, if somebody asked for the image by a name and it is known.
    pub image_name: Option<String>,
    /// What is known of it; nothing before it has connected.
    pub stats: SessionStats,
    dir: PathBuf,
    alive: bool,
}

impl Subject {
    /// What it has read.
    ///
    /// # Errors
    /// If its process does not answer, or left no trace.
    pub async fn trace(&self) -> Result<Trace> {
        let session = match self.kind {
            Kind::Server => Some(self.stats.session),
            Kind::Vm | Kind::Mount => None,
        };
        match self.alive {
            true => report::ask_trace(&self.dir, session).await,
            false => report::kept_trace(&self.dir).context("it left no trace"),
        }
    }

    /// The image, for people.
    pub fn image(&self) -> String {
        let digits = || self.stats.image.split_once(':').map_or("-", |(_, digits)| digits.get(..12).unwrap_or(digits));
        self.image_name.clone().unwrap_or_else(|| digits().to_owned())
    }
}

/// The guests of a process that answered.
fn subjects(process: ServingProcess) -> Vec<Subject> {
    let ServingProcess { dir, stats: ServerStats { kind, name, sessions, .. } } = process;
    let subject = |name: String, stats| Subject { kind, name, image_name: None, stats, dir: dir.clone(), alive: true };
    match kind {
        Kind::Vm | Kind::Mount => vec![subject(name, sessions.into_iter().next().unwrap_or_default())],
        Kind::Server => sessions.into_iter().map(|stats| subject(format!("{name}/{}", stats.session), stats)).collect(),
    }
}

/// Every mount, and every guest of a server, those that are gone included while their server remembers them.
async fn others(context: &Context) -> Result<Vec<Subject>> {
    let mut all = Vec::new();
    for folder in ["mount", "serve"] {
        all.extend(report::ask_all(&context.home.runtime_dir(folder)?).await?.into_iter().flat_map(subjects));
    }
    Ok(all)
}

/// Every guest that is there: VMs first, then mounts, then guests of servers.
///
/// # Errors
/// If the folders of processes cannot be read. Who does not answer is left out.
pub async fn all(context: &Context) -> Result<Vec<Subject>> {
    let vms = Vms::open(&context.home)?.list()?;
    let queries: Vec<_> = vms
        .into_iter()
        .filter(|vm| vm.state == State::Alive)
        .map(|vm| {
            tokio::spawn(async move {
                let stats = report::ask_stats(&vm.dir).await.ok()?;
                let image_name = vm.record.image_name;
                let named = move |subject| Subject { image_name: image_name.clone(), ..subject };
                Some(subjects(ServingProcess { dir: vm.dir, stats }).into_iter().map(named).collect::<Vec<_>>())
            })
        })
        .collect();
    let mut all = Vec::new();
    for one in queries {
        all.extend(one.await?.into_iter().flatten());
    }
    all.extend(others(context).await?.into_iter().filter(|subject| !subject.stats.ended));
    Ok(all)
}

/// The guest that `text` means: a VM as for every other verb, one that has ended and is kept included, a mount's folder,
/// or a guest of a server.
///
/// # Errors
/// If there is none, it does not answer, or it has left nothing.
pub async fn find(context: &Context, text: &str) -> Result<Subject> {
    let folder = std::fs::canonicalize(text).map(|path| path.to_string_lossy().into_owned()).ok();
    let mut others = others(context).await?;
    if let Some(found) = others.iter().position(|one| one.name == text || Some(&one.name) == folder.as_ref()) {
        return Ok(others.swap_remove(found));
    }
    let of_server: Vec<&Subject> =
        others.iter().filter(|one| one.name.rsplit_once('/').is_some_and(|(server, _)| server == text)).collect();
    match of_server.as_slice() {
        [] => (),
        [one] => return Ok((*one).clone()),
        several => {
            let names: Vec<_> = several.iter().map(|one| one.name.as_str()).collect();
            bail!("'{text}' has several guests: {}", names.join(", "));
        }
    }
    let vm = Vms::open(&context.home)?.find(text).map_err(|error| match others.as_slice() {
        [] => error,
        others => {
            let names: Vec<_> = others.iter().map(|one| one.name.as_str()).collect();
            anyhow::anyhow!("{error:#}; mounts and guests of servers: {}", names.join(", "))
        }
    })?;
    let name = &vm.record.name;
    let (stats, alive) = match vm.state {
        State::Alive => (report::ask_stats(&vm.dir).await.with_context(|| format!("VM '{name}'"))?, true),
        State::Ended(_) | State::Lost | State::Stopped => {
            (report::kept_stats(&vm.dir).with_context(|| format!("VM '{name}' has ended and left no figures"))?, false)
        }
    };
    let stats = stats.sessions.into_iter().next().unwrap_or_default();
    Ok(Subject { kind: Kind::Vm, name: name.clone(), image_name: vm.record.image_name, stats, dir: vm.dir, alive })
}

#[cfg(test)]
impl Subject {
    pub fn for_tests(name: &str, stats: SessionStats, dir: PathBuf) -> Self {
        Self { kind: Kind::Vm, name: name.to_owned(), image_name: None, stats, dir, alive: true }
    }
}
