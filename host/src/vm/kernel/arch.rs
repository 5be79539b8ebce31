//! The architectures that guests may have.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::store::Image;

/// A guest's architecture; written as Rust and the kernel name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// Where a C library's dynamic loader is, which every distribution's programs have to agree on.
const LOADERS: [(&str, Arch); 4] = [
    ("/lib64/ld-linux-x86-64.so.2", Arch::X86_64),
    ("/lib/ld-linux-aarch64.so.1", Arch::Aarch64),
    ("/lib/ld-musl-x86_64.so.1", Arch::X86_64),
    ("/lib/ld-musl-aarch64.so.1", Arch::Aarch64),
];

impl Arch {
    /// This machine's.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// `x86_64` or `aarch64`.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The architecture of an ELF program, if it is one for a guest of ours.
    pub fn of_elf(elf: &[u8]) -> Option<Self> {
        use object::{Architecture, Object};
        match object::File::parse(elf).ok()?.architecture() {
            Architecture::X86_64 => Some(Self::X86_64),
            Architecture::Aarch64 => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// The architecture of an image: what its OCI config says, else that of its C library; this machine's if neither
    /// tells, or the image has the libraries of several. An image that never changes is looked into once: that reads
    /// and hashes its whole manifest.
    ///
    /// # Errors
    /// If it is of another architecture, or its manifest is damaged.
    pub fn of_image(home: &Home, image: &Image) -> Result<Self> {
        let said = image.config.as_ref().map(|config| config.architecture.as_str());
        match said.filter(|name| !name.is_empty()) {
            Some("amd64") => return Ok(Self::X86_64),
            Some("arm64") => return Ok(Self::Aarch64),
            Some(other) => {
                let name = image.name.clone().unwrap_or_else(|| image.id.to_string());
                bail!("image {name} is for {other}: lazyroot runs amd64 and arm64")
            }
            None => (),
        }
        let known = home.data_dir("cache/arch")?.join(image.id.to_hex());
        let remembered = std::fs::read(&known).ok();
        if let Some(arch) = remembered.and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(arch);
        }
        let tree = image.tree()?;
        let mut found: Vec<Self> =
            LOADERS.iter().filter(|(path, _)| tree.exists(path)).map(|(_, arch)| *arch).collect();
        found.dedup();
        let arch = match found[..] {
            [arch] => arch,
            _ => Self::HOST,
        };
        // Only saves time: a cache that cannot be written costs the next launch another look.
        let _ = std::fs::write(&known, serde_json::to_vec(&arch).context("cannot remember an image's architecture")?);
        Ok(arch)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_bundles_have() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            assert_eq!(serde_json::to_value(arch).unwrap(), arch.name());
            assert_eq!(format!("{arch:8}").len(), 8);
        }
        assert_eq!(Arch::HOST.name(), std::env::consts::ARCH);
    }

    #[test]
    fn this_very_program_is_of_this_machine() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(Arch::of_elf(&program), Some(Arch::HOST));
        assert_eq!(Arch::of_elf(b"#!/bin/sh"), None);
    }
}
