//! When a VM counts as ready.

use std::convert::Infallible;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lazyroot_proto::exec::Exec;

use crate::vm::guest::exec;
use crate::vm::guest::ssh;
use crate::vm::instance::control;
use crate::vm::instance::status::Watch;

/// Pause between two looks at a unit: each is a program to run in the guest.
const EVERY: Duration = Duration::from_millis(500);

/// What `--wait` waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// `agent`: programs can be run.
    Agent,
    /// `ready`: the image's init says that the system is up, if it is one that says so.
    #[default]
    Ready,
    /// `ssh`: that, and the image's sshd answers.
    Ssh,
    /// The name of a systemd unit: it is active.
    Unit(String),
}

impl FromStr for Wait {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "agent" => Self::Agent,
            "ready" => Self::Ready,
            "ssh" => Self::Ssh,
            unit => Self::Unit(unit.to_owned()),
        })
    }
}

impl Wait {
    /// Waits for it, in a guest whose agent is there.
    ///
    /// # Errors
    /// If it will not come.
    pub async fn wait(&self, dir: &Path, watch: &Watch) -> Result<()> {
        match self {
            Self::Agent => Ok(()),
            Self::Ready => {
                watch.system_is_up().await;
                Ok(())
            }
            Self::Ssh => {
                watch.system_is_up().await;
                ssh::answers(dir).await
            }
            Self::Unit(unit) => unit_is_active(dir, unit, watch).await,
        }
    }
}

/// Asks systemd again and again.
async fn unit_is_active(dir: &Path, unit: &str, watch: &Watch) -> Result<()> {
    let argv = ["systemctl", "show", "--property=LoadState,ActiveState,Result", "--", unit];
    loop {
        // Before the question: what is not there once the system is up does not come by itself.
        let settled = watch.is_system_up();
        let request = Exec { argv: argv.map(|word| word.as_bytes().to_vec()).into(), ..Exec::default() };
        let said = exec::first_output(control::open_stream(dir).await?, request).await?;
        let said = said.map_err(|(_, why)| anyhow::anyhow!("{why}")).context("cannot ask for the unit")?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let property = |name: &str| {
            said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        match (property("LoadState").as_str(), property("ActiveState").as_str()) {
            (_, "active") => return Ok(()),
            (_, "failed") => bail!("the unit {unit} has failed: {}", property("Result")),
            ("not-found", _) if settled => bail!("the image has no unit {unit}"),
            (_, "inactive") if settled => bail!("the unit {unit} is not started by the image"),
            // systemd does not listen yet, or the unit is on its way.
            _ => tokio::time::sleep(EVERY).await,
        }
    }
}
