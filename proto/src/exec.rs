//! Running a program in the guest: the frames on a stream that the host asked for.
//!
//! The host's first frame is [`ExecInput::Exec`]. Standard input is under flow control of its own (credit), so
//! that a program that does not read cannot hold up a signal or a window change behind unread input.

use crate::frame::fields::{Reader, Writer};
use crate::frame::header::FrameError;

/// Frame kinds of an exec stream.
pub mod kind {
    #![allow(missing_docs, reason = "named as the messages they carry")]
    pub const EXEC: u8 = 0xa0;
    pub const STDIN: u8 = 0xa1;
    pub const STDIN_CREDIT: u8 = 0xa2;
    pub const STDOUT: u8 = 0xa3;
    pub const STDERR: u8 = 0xa4;
    pub const SIGNAL: u8 = 0xa5;
    pub const WINDOW: u8 = 0xa6;
    pub const EXIT: u8 = 0xa7;
    pub const STARTED: u8 = 0xa8;
    pub const FAILED: u8 = 0xa9;
}

/// Bytes of standard input that the host may send before the guest grants more.
pub const STDIN_WINDOW: u32 = 64 << 10;

/// The most bytes of standard input, output or error in one frame.
pub const MAX_CHUNK: usize = 8 << 10;

/// A terminal's size in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub columns: u16,
}

/// A program to run. Strings are bytes: neither Linux nor we ask for UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments; empty means the image's own init.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`, added to the defaults.
    pub env: Vec<Vec<u8>>,
    /// Directory to start in; empty means `/`.
    pub workdir: Vec<u8>,
    /// `user[:group]`, names or numbers, looked up in the image; empty means root.
    pub user: Vec<u8>,
    /// A pseudo-terminal of this size for all three streams; pipes if `None`.
    pub terminal: Option<TerminalSize>,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this status, 0-255.
    Status(u8),
    /// This signal killed it.
    Signal(u8),
}

/// Why a program did not start; shells tell the two apart by 127 and 126.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecError {
    /// There is no such program.
    NotFound,
    /// It cannot be run (permission, format, no such user or directory).
    CannotRun,
}

/// What the host sends on an exec stream: the program, and its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    /// Run this; the first frame.
    Exec(Exec),
    /// Standard input; empty closes it.
    Stdin(Vec<u8>),
    /// Send this signal (a Linux number) to the program's process group.
    Signal(u8),
    /// The terminal has a new size.
    Resize(TerminalSize),
}

/// What the guest sends on an exec stream: what becomes of the program, and its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// The program runs; standard input may flow, [`STDIN_WINDOW`] bytes at first.
    Started,
    /// It does not; the text says why. Last frame.
    Failed(ExecError, String),
    /// This many more bytes of standard input may be sent.
    StdinCredit(u32),
    /// Standard output, or the terminal's output.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// The program ended and all its output has been sent. Last frame.
    Exit(Exit),
}

fn list(mut out: Writer, items: &[Vec<u8>]) -> Writer {
    out = out.u32(items.len() as u32);
    for item in items {
        out = out.string(item);
    }
    out
}

fn read_list(fields: &mut Reader) -> Result<Vec<Vec<u8>>, FrameError> {
    let count = fields.u32()?;
    // Grows as strings are really found, so that a lying count costs nothing.
    (0..count).map(|_| fields.string()).collect()
}

fn read_window(fields: &mut Reader) -> Result<TerminalSize, FrameError> {
    Ok(TerminalSize { rows: fields.u16()?, columns: fields.u16()? })
}

impl ExecInput {
    /// The whole frame, header included.
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::default();
        match self {
            ExecInput::Exec(exec) => {
                let out = list(list(out, &exec.argv), &exec.env);
                let out = out.string(&exec.workdir).string(&exec.user);
                let out = match exec.terminal {
                    None => out.u8(0),
                    Some(window) => out.u8(1).u16(window.rows).u16(window.columns),
                };
                out.frame(kind::EXEC, 0)
            }
            ExecInput::Stdin(data) => out.bytes(data).frame(kind::STDIN, 0),
            ExecInput::Signal(signal) => out.u8(*signal).frame(kind::SIGNAL, 0),
            ExecInput::Resize(window) => out.u16(window.rows).u16(window.columns).frame(kind::WINDOW, 0),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind does not belong here or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let message = match kind {
            kind::EXEC => {
                let argv = read_list(&mut fields)?;
                let env = read_list(&mut fields)?;
                let workdir = fields.string()?;
                let user = fields.string()?;
                let terminal = match fields.u8()? {
                    0 => None,
                    1 => Some(read_window(&mut fields)?),
                    _ => return Err(fields.malformed()),
                };
                ExecInput::Exec(Exec { argv, env, workdir, user, terminal })
            }
            kind::STDIN => ExecInput::Stdin(fields.rest().to_vec()),
            kind::SIGNAL => ExecInput::Signal(fields.u8()?),
            kind::WINDOW => ExecInput::Resize(read_window(&mut fields)?),
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(message)
    }
}

impl ExecOutput {
    /// The whole frame, header included.
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::default();
        match self {
            ExecOutput::Started => out.frame(kind::STARTED, 0),
            ExecOutput::Failed(why, text) => out.u8(*why as u8).bytes(text.as_bytes()).frame(kind::FAILED, 0),
            ExecOutput::StdinCredit(bytes) => out.u32(*bytes).frame(kind::STDIN_CREDIT, 0),
            ExecOutput::Stdout(data) => out.bytes(data).frame(kind::STDOUT, 0),
            ExecOutput::Stderr(data) => out.bytes(data).frame(kind::STDERR, 0),
            ExecOutput::Exit(Exit::Status(status)) => out.u8(0).u8(*status).frame(kind::EXIT, 0),
            ExecOutput::Exit(Exit::Signal(signal)) => out.u8(1).u8(*signal).frame(kind::EXIT, 0),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind does not belong here or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let message = match kind {
            kind::STARTED => ExecOutput::Started,
            kind::FAILED => {
                let why = match fields.u8()? {
                    0 => ExecError::NotFound,
                    1 => ExecError::CannotRun,
                    _ => return Err(fields.malformed()),
                };
                ExecOutput::Failed(why, fields.text())
            }
            kind::STDIN_CREDIT => ExecOutput::StdinCredit(fields.u32()?),
            kind::STDOUT => ExecOutput::Stdout(fields.rest().to_vec()),
            kind::STDERR => ExecOutput::Stderr(fields.rest().to_vec()),
            kind::EXIT => match (fields.u8()?, fields.u8()?) {
                (0, status) => ExecOutput::Exit(Exit::Status(status)),
                (1, signal) => ExecOutput::Exit(Exit::Signal(signal)),
                _ => return Err(fields.malformed()),
            },
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER;

    #[test]
    fn messages_round_trip() {
        let exec = Exec {
            argv: vec![b"sh".to_vec(), b"\xff\n".to_vec()],
            env: vec![b"A=b".to_vec()],
            workdir: b"/tmp".to_vec(),
            user: b"nobody".to_vec(),
            terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        };
        for message in
            [ExecInput::Exec(exec), ExecInput::Exec(Exec::default()), ExecInput::Stdin(vec![]), ExecInput::Signal(2)]
        {
            let frame = message.encode();
            assert_eq!(ExecInput::decode(frame[4], &frame[HEADER..]), Ok(message));
        }
        let ends = [Exit::Status(255), Exit::Signal(9)].map(ExecOutput::Exit);
        let failed = ExecOutput::Failed(ExecError::NotFound, "no such program".into());
        for message in ends.into_iter().chain([failed, ExecOutput::Started, ExecOutput::StdinCredit(9)]) {
            let frame = message.encode();
            assert_eq!(ExecOutput::decode(frame[4], &frame[HEADER..]), Ok(message));
        }
    }
}
