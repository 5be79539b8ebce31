//! What was looked at on this machine, and how to mend it: the lines of `lazyroot doctor`.

use std::fs::File;
use std::path::Path;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing is missing.
    Good,
    /// Something is slower, or only some verbs work.
    Warning,
    /// VMs cannot run, or images cannot be imported.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Of what.
    pub name: &'static str,
    /// How bad it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// How to mend it; `None` for what is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Check {
    /// Nothing is missing.
    pub fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, health: Health::Good, found: found.into(), mend: None }
    }

    /// Something is slower, or only some verbs work.
    pub fn warning(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, health: Health::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    /// VMs cannot run, or images cannot be imported.
    pub fn bad(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, health: Health::Bad, found: found.into(), mend: Some(mend.into()) }
    }

    /// A device that is needed for `name`: a warning with what to do if it does not open for reading and writing.
    pub fn device(name: &'static str, path: &Path, mend: &str) -> Self {
        match File::options().read(true).write(true).open(path) {
            Ok(_) => Self::good(name, path.display().to_string()),
            Err(error) => Self::warning(name, format!("{}: {error}", path.display()), mend),
        }
    }

    /// What a program of others turned out to be: an error says what is wrong and, behind a colon, what to do. `missing`
    /// is how bad an error is.
    pub fn of(name: &'static str, missing: Health, outcome: anyhow::Result<String>) -> Self {
        match outcome {
            Ok(found) => Self::good(name, found),
            Err(error) => {
                let words = format!("{error:#}");
                let (found, mend) = words.split_once(": ").unwrap_or((&words, "see the message"));
                Self { name, health: missing, found: found.to_owned(), mend: Some(mend.to_owned()) }
            }
        }
    }
}
