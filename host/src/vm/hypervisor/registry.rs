//! The hypervisors that lazyroot knows, and which of them runs a VM: the platform's, or the one asked for.

use std::fmt;
use std::str::FromStr;

use super::backend::Backend;
use super::qemu::QemuBackend;
use super::vfkit::VfkitBackend;
use crate::home::Home;
use crate::vm::check::Check;

/// All backends. One more is one more line.
static BACKENDS: [&dyn Backend; 2] = [&QemuBackend, &VfkitBackend];

/// What the user asked for with `--hypervisor`: `NAME`, or `NAME:ACCELERATOR`.
#[derive(Clone, Copy)]
pub struct BackendChoice {
    /// Which.
    pub backend: &'static dyn Backend,
    /// How it runs the guest's instructions; `None` for the best way that works.
    pub accelerator: Option<&'static str>,
}

impl Default for BackendChoice {
    /// What the platform has.
    fn default() -> Self {
        let backend: &dyn Backend = if cfg!(target_os = "macos") { &VfkitBackend } else { &QemuBackend };
        Self { backend, accelerator: None }
    }
}

/// Every value that `--hypervisor` takes.
fn choices() -> impl Iterator<Item = BackendChoice> {
    BACKENDS.into_iter().flat_map(|backend| {
        let named = backend.accelerators().iter().copied().map(Some);
        [None].into_iter().chain(named).map(move |accelerator| BackendChoice { backend, accelerator })
    })
}

impl FromStr for BackendChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        choices().find(|choice| choice.to_string() == text).ok_or_else(|| {
            let mut names: Vec<String> = choices()
                .map(|choice| match choice.backend.platform() {
                    None => choice.to_string(),
                    Some(platform) => format!("{choice} on {platform}"),
                })
                .collect();
            let last = names.pop().unwrap_or_default();
            format!("there is no hypervisor '{text}': use {}, or {last}", names.join(", "))
        })
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.name())?;
        self.accelerator.map_or(Ok(()), |accelerator| write!(f, ":{accelerator}"))
    }
}

impl fmt::Debug for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Looks at the backends that run on this system, one after the other.
pub fn detect(home: &Home) -> Vec<Check> {
    let here = if cfg!(target_os = "macos") { Some("macOS") } else { None };
    BACKENDS.into_iter().filter(|backend| backend.platform() == here).flat_map(|backend| backend.detect(home)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hypervisor_is_named_as_it_is_printed_and_others_are_refused_with_all_names() {
        for text in ["qemu", "qemu:kvm", "qemu:tcg", "vfkit"] {
            assert_eq!(text.parse::<BackendChoice>().unwrap().to_string(), text);
        }
        for text in ["", "xen", "vfkit:tcg", "qemu:", "qemu:vz"] {
            assert_eq!(
                text.parse::<BackendChoice>().unwrap_err(),
                format!("there is no hypervisor '{text}': use qemu, qemu:kvm, qemu:tcg, or vfkit on macOS")
            );
        }
    }
}
