//! The VMs of a home: those that run, those that ended and stay, and those with a disk that wait to be started.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::home::Home;
use crate::vm::instance::disks::Disks;
use crate::vm::instance::folder::{Instance, State, state, sweep};
use crate::vm::instance::record::{End, Record, now, read_json};

/// A VM's folder, as it is found by others.
#[derive(Clone, Debug)]
pub struct VmEntry {
    /// What it is.
    pub record: Record,
    /// Whether it lives.
    pub state: State,
    /// Its folder.
    pub dir: PathBuf,
}

impl VmEntry {
    /// Its folder's name, unique among all VMs.
    pub fn id(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Whether it lives now.
    pub fn is_alive(&self) -> bool {
        // Of one without a run, the lock is that of its disk.
        self.state != State::Stopped && matches!(state(&self.dir), Ok(Some(State::Alive)))
    }

    /// Blocks until it has ended; how, or `None` if nobody knows.
    ///
    /// # Errors
    /// If its lock cannot be waited for.
    pub fn wait(&self) -> Result<Option<End>> {
        // Open before it ends: a folder that goes with its VM takes the lock's name along.
        match File::open(self.dir.join("lock")) {
            Ok(lock) => lock.lock_shared().context("cannot wait for the VM's lock")?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            Err(error) => return Err(error).context("cannot open the VM's lock"),
        }
        Ok(read_json(&self.dir.join("end.json")))
    }
}

/// All VMs of a home.
pub struct Vms {
    dir: PathBuf,
    disks: Disks,
}

impl Vms {
    /// Those of this home.
    ///
    /// # Errors
    /// If their folder cannot be made, or is not private.
    pub fn open(home: &Home) -> Result<Self> {
        Ok(Self { dir: home.runtime_dir("vm")?, disks: Disks::open(home)? })
    }

    /// What there is, the oldest first.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<Vec<VmEntry>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let dir = entry?.path();
            // One without is on its way in or out.
            let Some(record) = read_json(&dir.join("vm.json")) else { continue };
            let Some(state) = state(&dir)? else { continue };
            found.push(VmEntry { record, state, dir });
        }
        for name in self.disks.names()? {
            if found.iter().all(|vm| vm.record.name != name) {
                // One that cannot be read can still be removed, and keeps nobody from the others.
                let image = self.disks.get(&name).map(|saved| saved.image).unwrap_or_default();
                let dir = self.disks.disk(&name).parent().map(Path::to_owned).unwrap_or_default();
                let record = Record { name, image, persistent: true, keep: true, ..Record::default() };
                found.push(VmEntry { record, state: State::Stopped, dir });
            }
        }
        found.sort_by(|a, b| (a.record.created, &a.record.name).cmp(&(b.record.created, &b.record.name)));
        Ok(found)
    }

    /// The VM that `text` names: its name, its id, or the beginning of one that no other begins with.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find(&self, text: &str) -> Result<VmEntry> {
        let mut all = self.list()?;
        if let Some(exact) = all.iter().position(|vm| vm.record.name == text || vm.id() == text) {
            return Ok(all.swap_remove(exact));
        }
        let names = |vms: &[VmEntry]| vms.iter().map(|vm| vm.record.name.clone()).collect::<Vec<_>>().join(", ");
        let (mut matches, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|vm| !text.is_empty() && (vm.record.name.starts_with(text) || vm.id().starts_with(text)));
        match (matches.len(), others.is_empty()) {
            (1, _) => Ok(matches.remove(0)),
            (0, true) => bail!("there is no VM '{text}', and no other: 'lazyroot run -d' starts one"),
            (0, false) => bail!("there is no VM '{text}'; there are: {}", names(&others)),
            _ => bail!("'{text}' may be any of several VMs: {}", names(&matches)),
        }
    }

    /// Removes what is left of a VM that has ended.
    ///
    /// # Errors
    /// If it lives, its disk is in use, or its folder cannot be removed.
    pub fn remove(&self, vm: &VmEntry) -> Result<()> {
        let _launching = self.hold_launches()?;
        let name = &vm.record.name;
        ensure!(!vm.is_alive(), "VM '{name}' is running: 'lazyroot stop {name}' first, or --force");
        if vm.record.persistent {
            // It may have been started again since it was found.
            let _claim = self.disks.claim(name)?;
            self.disks.remove(name)?;
        }
        match fs::remove_dir_all(&vm.dir) {
            // Somebody else was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("cannot remove {}", vm.dir.display())),
        }
    }

    fn named(&self, name: &str) -> Result<Option<VmEntry>> {
        Ok(self.list()?.into_iter().find(|vm| vm.record.name == name))
    }

    /// # Errors
    /// If the name is taken, or is no good as a host name.
    pub fn check_free(&self, name: &str) -> Result<()> {
        refuse(name, self.named(name)?)
    }

    /// One launch or removal at a time while it is held: a folder must not be swept between its making and its
    /// locking, nor a name be given twice.
    fn hold_launches(&self) -> Result<File> {
        let folder = File::open(&self.dir)?;
        folder.lock().context("cannot lock the folder of VMs")?;
        Ok(folder)
    }

    /// A fresh folder for a VM; its name is made up if `record` has none.
    ///
    /// # Errors
    /// If the name is taken, or is no good as a host name.
    pub fn create(&self, mut record: Record) -> Result<Instance> {
        let _launching = self.hold_launches()?;
        sweep(&self.dir)?;
        // Short and unique among the living: the folder's name is part of every socket's address.
        let dir = tempfile::Builder::new().prefix("").rand_bytes(6).tempdir_in(&self.dir)?;
        if record.name.is_empty() {
            let id = dir.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            record.name = format!("vm-{id}");
        }
        if record.persistent {
            // What its last run left is over; its disk is what it goes on with.
            if let Some(last) =
                self.named(&record.name)?.filter(|last| matches!(last.state, State::Ended(_) | State::Lost))
            {
                fs::remove_dir_all(&last.dir).context("cannot clear the VM's folder")?;
            }
        }
        let other = self.named(&record.name)?.filter(|other| !(record.persistent && other.state == State::Stopped));
        refuse(&record.name, other)?;
        let lock = File::create(dir.path().join("lock"))?;
        lock.lock().context("cannot lock the VM's folder")?;
        record.created = now();
        record.pid = std::process::id();
        let instance = Instance { record, dir: dir.keep(), _lock: lock };
        instance.write_record()?;
        Ok(instance)
    }
}

/// # Errors
/// If there is another VM of that name, or it is no good as a host name.
fn refuse(name: &str, other: Option<VmEntry>) -> Result<()> {
    check_name(name)?;
    match other {
        None => Ok(()),
        Some(VmEntry { state: State::Alive, record, .. }) => {
            bail!("a VM named '{name}' is running already (process {}): choose another --name", record.pid)
        }
        Some(VmEntry { state: State::Stopped, .. }) => {
            bail!(
                "there is a stopped VM named '{name}': 'lazyroot start {name}', 'lazyroot rm {name}', or another name"
            )
        }
        Some(_) => bail!("a VM named '{name}' has ended: 'lazyroot rm {name}', or choose another --name"),
    }
}

/// A name that is good for a VM, a host and a command line.
fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !fits {
        bail!("'{name}' is no name for a VM: use 1 to 63 letters, digits and inner hyphens, as in a host name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::instance::status::Timings;

    fn vms(parent: &Path) -> Vms {
        let disks = parent.join("disks");
        let dir = parent.join("vm");
        fs::create_dir_all(&disks).unwrap();
        fs::create_dir_all(&dir).unwrap();
        Vms { dir, disks: Disks::at(disks) }
    }

    fn named(name: &str) -> Record {
        Record { name: name.into(), ..Record::default() }
    }

    #[test]
    fn names_are_those_of_hosts() {
        assert!(["a", "web-1", "A9"].iter().all(|name| check_name(name).is_ok()));
        assert!(["", "-a", "a-", "a b", "a/b", "ä", &"x".repeat(64)].iter().all(|name| check_name(name).is_err()));
    }

    #[test]
    fn launches_at_the_same_time_do_not_disturb_one_another() {
        let parent = tempfile::tempdir().unwrap();
        let vms = vms(parent.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let instance = vms.create(Record::default()).unwrap();
                        assert!(instance.dir().join("vm.json").exists());
                    }
                });
            }
            let named: Vec<_> = (0..8).map(|_| scope.spawn(|| vms.create(named("web")))).collect();
            let named: Vec<_> = named.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert_eq!(named.iter().filter(|launched| launched.is_ok()).count(), 1);
        });
    }

    #[test]
    fn the_dead_are_swept_away_unless_they_are_kept_and_told_from_the_living() {
        let parent = tempfile::tempdir().unwrap();
        let vms = vms(parent.path());
        let living = vms.create(named("living")).unwrap();
        let mut ended = vms.create(named("ended")).unwrap();
        ended.keep().unwrap();
        ended.end(&End { status: Some(3), reason: None, at: now(), timings: Timings::default() }).unwrap();
        drop(ended);
        // A crash: the lock goes, nothing is written down, and nothing is cleaned up.
        let crash = |name: &str, keep: bool| {
            let mut instance = vms.create(named(name)).unwrap();
            if keep {
                instance.keep().unwrap();
            }
            let copy = parent.path().join("vm").join(format!("{name}-copy"));
            fs::create_dir(&copy).unwrap();
            for file in ["vm.json", "lock"] {
                fs::copy(instance.dir().join(file), copy.join(file)).unwrap();
            }
            instance.record.keep = false;
        };
        crash("lost", true);
        crash("gone", false);
        let another = vms.create(named("another")).unwrap();
        let states: Vec<_> = vms.list().unwrap().into_iter().map(|vm| (vm.record.name, vm.state)).collect();
        let state_of = |name: &str| states.iter().find(|(other, _)| other == name).map(|(_, state)| state.clone());
        assert_eq!(state_of("living"), Some(State::Alive));
        assert!(matches!(state_of("ended"), Some(State::Ended(End { status: Some(3), .. }))));
        assert_eq!(state_of("lost"), Some(State::Lost));
        assert_eq!(state_of("gone"), None);
        assert!(vms.create(named("ended")).is_err(), "the name of one that is kept is taken");
        assert!(vms.remove(&vms.find("living").unwrap()).is_err());
        vms.remove(&vms.find("ended").unwrap()).unwrap();
        vms.create(named("ended")).unwrap();
        drop((living, another));
    }

    #[test]
    fn a_vm_is_found_by_name_id_or_a_beginning_that_is_its_alone() {
        let parent = tempfile::tempdir().unwrap();
        let vms = vms(parent.path());
        assert!(vms.find("web").unwrap_err().to_string().contains("no other"));
        let _both = [vms.create(named("web")).unwrap(), vms.create(named("web-2")).unwrap()];
        let other = vms.create(named("other")).unwrap();
        let name = |text: &str| vms.find(text).map(|vm| vm.record.name).map_err(|error| error.to_string());
        assert_eq!(name("web").unwrap(), "web");
        assert_eq!(name("oth").unwrap(), "other");
        assert_eq!(name(&other.dir().file_name().unwrap().to_string_lossy()).unwrap(), "other");
        assert!(name("we").unwrap_err().contains("web, web-2"));
        assert!(name("nobody").unwrap_err().contains("there are: "));
        assert!(name("").is_err());
    }
}
