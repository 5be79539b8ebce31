//! Programs that run for the host, one per stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use lazyroot_proto::exec::{Exec, ExecError, ExecInput, ExecOutput, Exit, MAX_CHUNK, TerminalSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::agent::users;
use crate::link::recorder::Recorder;
use crate::link::{FrameReader, write_capped};
use crate::sys::{self, Identity};
use crate::threads;

/// What a pipe holds unless a program asks for more, in bytes (pipe(7)); a terminal holds no more.
const PIPE_CAPACITY: usize = 64 << 10;

/// The sending half of a program's stream, shared by its output pumps.
#[derive(Clone)]
struct Host(Arc<Mutex<Arc<File>>>);

impl Host {
    fn send(&self, message: &ExecOutput) -> io::Result<()> {
        let stream = self.0.lock().expect("no panic under the lock");
        write_capped(&**stream, &message.encode())
    }
}

/// Makes a message of a piece of output: standard output's or standard error's.
type Wrap = fn(Vec<u8>) -> ExecOutput;

/// A program that was started.
struct Program {
    child: Child,
    stdin: File,
    outputs: Vec<(File, Wrap)>,
    terminal: Option<File>,
}

fn next_message(frames: &mut FrameReader) -> io::Result<ExecInput> {
    let (header, payload) = frames.read_frame()?;
    ExecInput::decode(header.kind, &payload).map_err(io::Error::other)
}

/// Runs a program in `root` and passes its input and output on, until it ends. What it read is in `recorder`.
///
/// # Errors
/// If the stream to the host fails. What fails here, the host is told.
pub fn run_program(mut frames: FrameReader, exec: Exec, root: &OwnedFd, recorder: &Recorder) -> io::Result<()> {
    let host = Host(Arc::new(Mutex::new(frames.stream())));
    let mut program = match start(&exec, root) {
        Ok(program) => program,
        Err(error) => {
            let missing =
                error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
            let why = if missing { ExecError::NotFound } else { ExecError::CannotRun };
            return host.send(&ExecOutput::Failed(why, format!("{error:#}")));
        }
    };
    let leader = Pid::from_child(&program.child);
    let group = Group(Arc::new(Mutex::new(Some(leader))));
    if let Err(error) = host.send(&ExecOutput::Started) {
        group.kill(Signal::KILL);
        program.child.wait()?;
        return Err(error);
    }
    // Its end tells the pumps that no more output need be waited for.
    let (ended, running) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let ended = Arc::new(ended);
    let pumps: Vec<_> = program
        .outputs
        .drain(..)
        .map(|(output, wrap)| {
            let (host, ended) = (host.clone(), ended.clone());
            threads::start_or_panic("output", move || pump(output, &ended, |data| host.send(&wrap(data))))
        })
        .collect();
    let (input, queue) = channel();
    let feeder = host.clone();
    let stdin = program.stdin;
    // Not joined: a write to a program that never reads ends with the program's pipe.
    threads::start_or_panic("input", move || feed(stdin, &queue, &feeder));
    let terminal = program.terminal;
    // Not joined either: it ends with the stream, or with this process.
    let listener = group.clone();
    threads::start_or_panic("program", move || listen(&mut frames, &input, &listener, terminal));

    // Waits without reaping: until the group is closed, its number must stay taken.
    rustix::io::retry_on_intr(|| waitid(WaitId::Pid(leader), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT))?;
    group.close();
    let status = program.child.wait()?;
    drop(running);
    for pump in pumps {
        pump.join().map_err(|_| io::Error::other("an output pump panicked"))??;
    }
    let exit = match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(code as u8),
        (None, Some(signal)) => Exit::Signal(signal as u8),
        (None, None) => Exit::Status(u8::MAX),
    };
    // Afterwards the host may end the VM.
    recorder.flush();
    host.send(&ExecOutput::Exit(exit))
}

/// A program's process group, by its leader's number until that may be another program's.
#[derive(Clone)]
struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    fn kill(&self, signal: Signal) {
        if let Some(leader) = *self.0.lock().expect("no panic under the lock") {
            // Fails if all have ended just now.
            let _ = kill_process_group(leader, signal);
        }
    }

    /// Sends no more signals: the leader is about to be reaped.
    fn close(&self) {
        *self.0.lock().expect("no panic under the lock") = None;
    }
}

/// What the host sends while the program runs.
fn listen(frames: &mut FrameReader, input: &Sender<Vec<u8>>, group: &Group, terminal: Option<File>) {
    while let Ok(message) = next_message(frames) {
        match message {
            ExecInput::Stdin(data) => {
                // Nobody takes it any more: the program closed its input.
                let _ = input.send(data);
            }
            ExecInput::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number.into()) {
                    group.kill(signal);
                }
            }
            ExecInput::Resize(window) => {
                if let Some(terminal) = &terminal {
                    let _ = tcsetwinsize(terminal, winsize(window));
                }
            }
            ExecInput::Exec(_) => break,
        }
    }
    // The host is gone: so is whoever wanted the program.
    group.kill(Signal::HUP);
}

/// Writes the program's input and grants the host as much again.
fn feed(mut stdin: File, queue: &Receiver<Vec<u8>>, host: &Host) {
    while let Ok(data) = queue.recv() {
        if data.is_empty()
            || stdin.write_all(&data).is_err()
            || host.send(&ExecOutput::StdinCredit(data.len() as u32)).is_err()
        {
            return;
        }
    }
}

/// Sends output on until its end, or until the program has ended and what it had written is sent. A child that it
/// left behind may go on writing for ever: that is not waited for.
fn pump(mut output: File, ended: &OwnedFd, send: impl Fn(Vec<u8>) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [0; MAX_CHUNK];
    // Once the program has ended: how much of its output can still be there.
    let mut left = None;
    while left != Some(0) {
        let mut fds = vec![PollFd::new(&output, PollFlags::IN)];
        if left.is_none() {
            fds.push(PollFd::new(ended, PollFlags::IN));
        }
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, left.map(|_| &at_once))?;
        let (readable, over) = (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|end| !end.revents().is_empty()));
        drop(fds);
        if over {
            // Looks again: output may have been written just before the end.
            left = Some(fcntl_getpipe_size(&output).unwrap_or(PIPE_CAPACITY));
            continue;
        }
        if !readable {
            return Ok(());
        }
        let most = left.map_or(MAX_CHUNK, |left| left.min(MAX_CHUNK));
        match output.read(&mut buffer[..most]) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                send(buffer[..len].to_vec())?;
                left = left.map(|left| left - len);
            }
            // How a terminal says that its last user is gone.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn start(exec: &Exec, root: &OwnedFd) -> Result<Program> {
    let Some((program, arguments)) = exec.argv.split_first() else { bail!("no program was named") };
    let identity = users::resolve(root, &exec.user)?;
    let workdir = if exec.workdir.is_empty() { b"/".as_slice() } else { &exec.workdir };
    if let Err(error) = users::open_in(root, workdir, rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY) {
        // Not "not found", which would say that the program is.
        bail!("cannot start in {}: {error}", String::from_utf8_lossy(workdir));
    }
    let mut command = Command::new(sys::os_string(program));
    command.args(arguments.iter().map(|argument| sys::os_string(argument))).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", sys::os_string(&identity.home));
    for variable in &exec.env {
        let mut parts = variable.splitn(2, |byte| *byte == b'=');
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        command.env(sys::os_string(name), sys::os_string(value));
    }
    let named = || format!("cannot run '{}'", String::from_utf8_lossy(program));
    let ids = Identity { uid: identity.uid, gid: identity.gid, groups: identity.groups };
    match exec.terminal {
        None => {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            sys::prepare_program(&mut command, root, workdir, ids, sys::Controlling::No)?;
            let mut child = command.spawn().with_context(named)?;
            let file = |fd: Option<OwnedFd>| File::from(fd.expect("all three are pipes"));
            let stdin = file(child.stdin.take().map(OwnedFd::from));
            let stdout = file(child.stdout.take().map(OwnedFd::from));
            let stderr = file(child.stderr.take().map(OwnedFd::from));
            Ok(Program {
                child,
                stdin,
                outputs: vec![(stdout, ExecOutput::Stdout), (stderr, ExecOutput::Stderr)],
                terminal: None,
            })
        }
        Some(window) => {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            let terminal = users::open_in(root, b"/dev/ptmx", flags).context("the guest has no /dev/ptmx")?;
            unlockpt(&terminal)?;
            let other_end =
                ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            tcsetwinsize(&terminal, winsize(window))?;
            let _ = rustix::fs::fchown(&other_end, Some(rustix::fs::Uid::from_raw(ids.uid)), None);
            command.stdin(other_end.try_clone()?).stdout(other_end.try_clone()?).stderr(other_end);
            sys::prepare_program(&mut command, root, workdir, ids, sys::Controlling::Stdin)?;
            let child = command.spawn().with_context(named)?;
            let terminal = File::from(terminal);
            let stdin = terminal.try_clone()?;
            let output = terminal.try_clone()?;
            Ok(Program { child, stdin, outputs: vec![(output, ExecOutput::Stdout)], terminal: Some(terminal) })
        }
    }
}

fn winsize(window: TerminalSize) -> Winsize {
    Winsize { ws_row: window.rows, ws_col: window.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::cell::Cell;
    use std::os::unix::process::CommandExt;

    /// What `pump` sends of what `write` leaves in a pipe by a program that has ended, in bytes.
    fn pumped(write: impl FnOnce(File)) -> usize {
        let (output, input) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (ended, running) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(running);
        write(input.into());
        let sent = Cell::new(0);
        let send = |data: Vec<u8>| {
            sent.set(sent.get() + data.len());
            Ok(())
        };
        pump(output.into(), &ended, send).unwrap();
        sent.get()
    }

    #[test]
    fn what_an_ended_program_wrote_is_sent_and_what_a_child_goes_on_writing_is_not_waited_for() {
        let full = vec![b'y'; PIPE_CAPACITY];
        assert_eq!(pumped(|mut pipe| pipe.write_all(&full).unwrap()), full.len());
        let sent = pumped(|mut pipe| {
            pipe.write_all(b"y\n").unwrap();
            // A child of the program holds the pipe, and writes nothing.
            std::mem::forget(pipe);
        });
        assert_eq!(sent, 2);
        let sent = pumped(|mut pipe| {
            threads::start_or_panic("child", move || while pipe.write_all(&full).is_ok() {});
        });
        assert!(sent <= PIPE_CAPACITY, "{sent} bytes");
    }

    #[test]
    fn a_closed_group_gets_no_signal() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let group = Group(Arc::new(Mutex::new(Some(Pid::from_child(&child)))));
        let clone = group.clone();
        group.close();
        clone.kill(Signal::KILL);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
