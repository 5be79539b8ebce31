//! Running a program in a guest as on this terminal.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use lazyroot_proto::exec::{Exec, ExecError, ExecInput, ExecOutput, Exit, MAX_CHUNK, STDIN_WINDOW, TerminalSize};
use lazyroot_proto::frame::{HEADER, MAX_PAYLOAD};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::complain::complain;
use crate::serve::{read_frame, write_frame};
use crate::text::printable;
use crate::vm::log::Log;

/// Signals that ask to end after which a program that ignores them is given up on.
const PATIENCE: u32 = 3;

/// Exit status of a program that could not be run, and of one that is not there, as shells have it.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that killed a program, as shells do.
const SIGNALLED: u8 = 128;

/// How a program in a guest ended, as this process's own exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// Of a program that had to be killed.
    pub const KILLED: Self = Self(SIGNALLED + SIGKILL);

    /// As shells report a program that a signal ended.
    fn of_signal(number: u8) -> Self {
        Self(SIGNALLED.wrapping_add(number))
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status.0)
    }
}

/// This process's terminal size; `None` if standard input is no terminal.
pub fn window() -> Option<TerminalSize> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Ended(Status),
    /// It did not start.
    NotStarted(ExecError, String),
}

impl Outcome {
    /// The status, after telling the user if the program did not start.
    pub fn report(self) -> Status {
        match self {
            Self::Ended(status) => status,
            Self::NotStarted(why, text) => {
                complain(text);
                why.into()
            }
        }
    }
}

impl From<ExecError> for Status {
    fn from(why: ExecError) -> Self {
        Self(match why {
            ExecError::NotFound => NOT_FOUND,
            ExecError::CannotRun => CANNOT_RUN,
        })
    }
}

impl From<Exit> for Status {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Status(status) => Self(status),
            Exit::Signal(signal) => Self::of_signal(signal),
        }
    }
}

/// What a program reads from its standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Ours.
    Ours,
    /// Nothing.
    Nothing,
}

async fn send_exec(to_guest: &mut (impl AsyncWrite + Unpin), exec: Exec) -> Result<()> {
    let request = ExecInput::Exec(exec).encode();
    ensure!(
        request.len() <= HEADER + MAX_PAYLOAD,
        "the command and its environment are longer than {MAX_PAYLOAD} bytes"
    );
    write_frame(to_guest, &request).await.context("the guest went away")
}

async fn next_message(from_guest: &mut (impl AsyncRead + Unpin)) -> Result<ExecOutput> {
    let (header, payload) = read_frame(from_guest).await.context("the guest went away before the program ended")?;
    ExecOutput::decode(header.kind, &payload).context("the guest broke the protocol")
}

/// A program that runs without us: its output goes to a log, and it reads nothing.
pub struct DetachedProgram<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> DetachedProgram<S> {
    /// Starts `exec` on a stream that the guest opened.
    ///
    /// # Errors
    /// If the stream ends; within, why the program does not start.
    pub async fn start(mut stream: S, exec: Exec) -> Result<Result<Self, (ExecError, String)>> {
        send_exec(&mut stream, exec).await?;
        match next_message(&mut stream).await? {
            ExecOutput::Started => (),
            ExecOutput::Failed(why, text) => return Ok(Err((why, printable(&text)))),
            _ => bail!("the guest broke the protocol"),
        }
        write_frame(&mut stream, &ExecInput::Stdin(Vec::new()).encode()).await.context("the guest went away")?;
        Ok(Ok(Self(stream)))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If the stream ends before the program does, or the log cannot be written.
    pub async fn log(mut self, log: &mut Log) -> Result<Status> {
        loop {
            match next_message(&mut self.0).await? {
                ExecOutput::Stdout(data) | ExecOutput::Stderr(data) => {
                    log.write(&data).context("cannot write the log")?
                }
                ExecOutput::StdinCredit(_) => (),
                ExecOutput::Exit(exit) => return Ok(exit.into()),
                ExecOutput::Started | ExecOutput::Failed(..) => bail!("the guest broke the protocol"),
            }
        }
    }
}

/// Runs `exec` on a stream that the guest opened until its first output; what that is, or why it does not start. It is
/// hung up on then.
///
/// # Errors
/// If the stream ends first.
pub async fn first_output(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    exec: Exec,
) -> Result<Result<Vec<u8>, (ExecError, String)>> {
    send_exec(&mut stream, exec).await?;
    loop {
        match next_message(&mut stream).await? {
            ExecOutput::Started | ExecOutput::StdinCredit(_) => (),
            ExecOutput::Stdout(data) | ExecOutput::Stderr(data) => return Ok(Ok(data)),
            ExecOutput::Failed(why, text) => return Ok(Err((why, printable(&text)))),
            ExecOutput::Exit(_) => return Ok(Ok(Vec::new())),
        }
    }
}

/// Runs `exec` on a stream that the guest opened: our standard output and error are the program's, and so is our
/// standard input if `from` says so; our signals reach it. `started` is called once, when the program runs.
///
/// # Errors
/// If the stream ends before the program does.
pub async fn run(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    exec: Exec,
    from: Input,
    started: impl FnOnce(),
) -> Result<Outcome> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let on_terminal = exec.terminal.is_some();
    send_exec(&mut to_guest, exec).await?;

    // Frames are read in a task of their own: a half-read frame must not be dropped when something else happens.
    let (frames, mut messages) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((header, payload)) = read_frame(&mut from_guest).await {
            if frames.send(ExecOutput::decode(header.kind, &payload)).await.is_err() {
                return;
            }
        }
    });

    let mut started = Some(started);
    let terminal = SavedTerminal::save();
    let mut input: Option<mpsc::Receiver<Vec<u8>>> = None;
    let mut credit = 0;
    let mut signals = Signals::new()?;
    let mut output = Output { stdout: tokio::io::stdout(), stderr: tokio::io::stderr(), broken: false };
    loop {
        let readable = credit > 0 && input.is_some();
        tokio::select! {
            message = messages.recv() => {
                let message = message.context("the guest went away before the program ended")?;
                match message.context("the guest broke the protocol")? {
                    ExecOutput::Started => {
                        let Some(started) = started.take() else { bail!("the guest broke the protocol") };
                        started();
                        // Raw only now: until here Ctrl-C is for us.
                        if on_terminal && let Some(terminal) = &terminal {
                            terminal.make_raw()?;
                            // It may have been resized since we asked for the program.
                            if let Some(window) = window() {
                                let message = ExecInput::Resize(window).encode();
                                write_frame(&mut to_guest, &message).await.context("the guest went away")?;
                            }
                        }
                        match from {
                            Input::Ours => input = Some(read_stdin()),
                            Input::Nothing => {
                                let end = ExecInput::Stdin(Vec::new()).encode();
                                write_frame(&mut to_guest, &end).await.context("the guest went away")?;
                            }
                        }
                        credit = STDIN_WINDOW as usize;
                    }
                    ExecOutput::Failed(why, text) => return Ok(Outcome::NotStarted(why, printable(&text))),
                    ExecOutput::StdinCredit(bytes) => credit += bytes as usize,
                    ExecOutput::Stdout(data) => output.stdout(&data, &mut to_guest).await?,
                    ExecOutput::Stderr(data) => output.stderr(&data).await,
                    ExecOutput::Exit(exit) => return Ok(Outcome::Ended(exit.into())),
                }
            }
            data = async { input.as_mut().expect("guarded").recv().await }, if readable => {
                let data = data.unwrap_or_default();
                if data.is_empty() {
                    input = None;
                }
                credit = credit.saturating_sub(data.len());
                write_frame(&mut to_guest, &ExecInput::Stdin(data).encode()).await.context("the guest went away")?;
            }
            signal = signals.next() => {
                let message = match signal {
                    SignalEvent::Window => match window() {
                        Some(window) if on_terminal => ExecInput::Resize(window),
                        _ => continue,
                    },
                    SignalEvent::Number(number) => ExecInput::Signal(number),
                    SignalEvent::GiveUp(number) => return Ok(Outcome::Ended(Status::of_signal(number))),
                };
                write_frame(&mut to_guest, &message.encode()).await.context("the guest went away")?;
            }
        }
    }
}

/// Our standard output and error, as far as somebody takes them.
struct Output {
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
    broken: bool,
}

impl Output {
    /// Writes output on; if nobody reads it any more, the program gets SIGPIPE, as it would here.
    async fn stdout(&mut self, data: &[u8], to_guest: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        if self.broken {
            return Ok(());
        }
        let written = async {
            self.stdout.write_all(data).await?;
            self.stdout.flush().await
        };
        if written.await.is_err() {
            self.broken = true;
            write_frame(to_guest, &ExecInput::Signal(SIGPIPE).encode()).await.context("the guest went away")?;
        }
        Ok(())
    }

    async fn stderr(&mut self, data: &[u8]) {
        // Nowhere left to complain to.
        let _ = self.stderr.write_all(data).await;
        let _ = self.stderr.flush().await;
    }
}

/// Pieces of our standard input, the last one empty. A thread of its own: a read of a terminal cannot be given
/// up, and the process must be able to end during one.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::spawn(move || {
        let mut stdin = std::io::stdin();
        let mut buffer = [0; MAX_CHUNK];
        loop {
            // An error is an end: a closed standard input above all.
            let len = stdin.read(&mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..len].to_vec()).is_err() || len == 0 {
                return;
            }
        }
    });
    receiver
}

// Linux's numbers, which go over the wire; macOS has the same ones.
const SIGHUP: u8 = 1;
const SIGINT: u8 = 2;
const SIGQUIT: u8 = 3;
const SIGKILL: u8 = 9;
const SIGPIPE: u8 = 13;
const SIGTERM: u8 = 15;

/// Waits for a signal that asks us to end; the status with which we then do.
///
/// # Errors
/// If signals cannot be listened to.
pub async fn ended_by_signal() -> Result<Status> {
    let mut signals = Signals::new()?;
    loop {
        if let SignalEvent::Number(number) = signals.next().await {
            return Ok(Status::of_signal(number));
        }
    }
}

enum SignalEvent {
    Number(u8),
    Window,
    GiveUp(u8),
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    window: Signal,
    count: u32,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            window: signal(SignalKind::window_change())?,
            count: 0,
        })
    }

    async fn next(&mut self) -> SignalEvent {
        let number = tokio::select! {
            _ = self.hangup.recv() => SIGHUP,
            _ = self.interrupt.recv() => SIGINT,
            _ = self.quit.recv() => SIGQUIT,
            _ = self.terminate.recv() => SIGTERM,
            _ = self.window.recv() => return SignalEvent::Window,
        };
        self.count += 1;
        if self.count < PATIENCE { SignalEvent::Number(number) } else { SignalEvent::GiveUp(number) }
    }
}

/// The settings of the terminal on our standard input, put back when dropped.
pub struct SavedTerminal(Termios);

impl SavedTerminal {
    /// Remembers them; `None` if standard input is no terminal.
    pub fn save() -> Option<Self> {
        tcgetattr(std::io::stdin()).ok().map(Self)
    }

    /// Passes every key on as it is typed, Ctrl-C among them.
    fn make_raw(&self) -> Result<()> {
        let mut raw = self.0.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("cannot set the terminal up")
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Whether our standard input is a terminal.
pub fn on_terminal() -> bool {
    std::io::stdin().is_terminal()
}
