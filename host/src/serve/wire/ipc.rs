//! Messages between processes of lazyroot's own: a length (u32, little-endian) and JSON. They travel on sockets in
//! folders that are the user's alone.

use anyhow::{Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// No message is longer, in bytes: the longest is a trace of all reads that a session keeps, about 1 MB.
const LONGEST: u32 = 4 << 20;

/// Sends a message.
///
/// # Errors
/// If the other end is gone.
pub async fn send(stream: &mut (impl AsyncWriteExt + Unpin), message: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(message)?;
    let bytes = [&(text.len() as u32).to_le_bytes()[..], &text].concat();
    stream.write_all(&bytes).await?;
    Ok(stream.flush().await?)
}

/// Receives a message.
///
/// # Errors
/// If the other end is gone, or says something else.
pub async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<T> {
    let len = stream.read_u32_le().await?;
    if len > LONGEST {
        bail!("a message of {len} bytes is longer than any of ours");
    }
    let mut text = vec![0; len as usize];
    stream.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}
