//! QEMU's monitor, as far as it is needed: one command, one answer
//! (<https://www.qemu.org/docs/master/interop/qmp-spec.html>).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// QEMU answers at once unless it hangs.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs one command that takes no arguments.
///
/// # Errors
/// If QEMU cannot be reached or refuses.
pub async fn execute(socket: &Path, command: &str) -> Result<()> {
    timeout(DEADLINE, talk(socket, command))
        .await
        .unwrap_or_else(|_| bail!("no answer within {} s", DEADLINE.as_secs()))
        .with_context(|| format!("QEMU does not '{command}'"))
}

async fn talk(socket: &Path, command: &str) -> Result<()> {
    let stream = UnixStream::connect(socket).await.context("cannot reach its monitor")?;
    let mut stream = BufReader::new(stream);
    for command in ["qmp_capabilities", command] {
        let request = serde_json::json!({ "execute": command }).to_string() + "\n";
        stream.write_all(request.as_bytes()).await?;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                bail!("it closed its monitor");
            }
            // The greeting and events come in between.
            let said: serde_json::Value = serde_json::from_str(&line)?;
            if let Some(error) = said.get("error") {
                bail!("{error}");
            }
            if said.get("return").is_some() {
                break;
            }
        }
    }
    Ok(())
}
