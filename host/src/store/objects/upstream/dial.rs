//! Byte streams to other lazyroots: a socket, or a program's standard input and output.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How many of a program's last lines on standard error are kept to explain its end.
const LAST_WORDS: usize = 5;

/// How long a program that closed its output may take to say why and end.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// A word for what a program's last words mean, if it is known.
type Advice = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// How a stream is opened.
pub(super) enum Dial {
    /// A unix socket.
    Unix(PathBuf),
    /// A program whose standard input and output are the stream.
    Program {
        /// It and its arguments.
        argv: Vec<String>,
        /// Explains its last words.
        advice: Advice,
    },
}

/// An open stream; dropping it ends the program at its other end, if there is one.
pub(super) struct Stream {
    pub(super) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub(super) end: End,
}

/// What keeps a stream open, and what can be learnt when it ends.
pub(super) struct End {
    program: Option<Program>,
}

/// A program at the other end.
struct Program {
    child: Child,
    words: Arc<Mutex<VecDeque<String>>>,
    /// Takes its words down.
    listener: JoinHandle<()>,
}

impl Dial {
    /// A lazyroot on another machine. `LAZYROOT_SSH` is the ssh to use, with options, as `GIT_SSH_COMMAND` is git's.
    pub(super) fn ssh(destination: &str, port: Option<u16>, program: &str) -> Self {
        let ssh = std::env::var("LAZYROOT_SSH").ok().filter(|words| !words.trim().is_empty());
        let mut argv: Vec<String> = ssh.as_deref().unwrap_or("ssh").split_whitespace().map(str::to_owned).collect();
        // Nobody is there to type a password, and no terminal may touch the bytes. ssh's own compression would pack
        // what is packed.
        argv.extend(["-T", "-oBatchMode=yes", "-oCompression=no"].map(str::to_owned));
        if let Some(port) = port {
            argv.extend(["-p".to_owned(), port.to_string()]);
        }
        // ssh wants an IPv6 address without the brackets of a URL.
        let destination = destination.replace(['[', ']'], "");
        argv.extend(["--".to_owned(), destination.clone(), format!("{program} serve --stdio")]);
        let advice = move |words: &str| ssh_advice(&destination, words);
        Self::Program { argv, advice: Box::new(advice) }
    }

    /// A shell command.
    pub(super) fn command(command: &str) -> Self {
        let argv = ["sh", "-c", command].map(str::to_owned).to_vec();
        Self::Program { argv, advice: Box::new(|_| None) }
    }

    /// Opens a stream. Success says nothing yet of who is at its other end.
    pub(super) async fn open(&self) -> Result<Stream> {
        match self {
            Dial::Unix(path) => {
                let stream = UnixStream::connect(path).await.with_context(|| {
                    format!("cannot connect to {}: is 'lazyroot serve --peer unix:PATH' running?", path.display())
                })?;
                let (reader, writer) = stream.into_split();
                Ok(Stream { reader: Box::new(reader), writer: Box::new(writer), end: End { program: None } })
            }
            Dial::Program { argv, .. } => {
                let mut command = Command::new(&argv[0]);
                command.args(&argv[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                // A process group of its own: the terminal's Ctrl-C is for what we run, not for the way there, and
                // with the shell of `command:` what it started ends too.
                command.process_group(0).kill_on_drop(true);
                let mut child = command.spawn().with_context(|| format!("cannot start {}", argv[0]))?;
                let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
                let words = Arc::<Mutex<VecDeque<String>>>::default();
                let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
                let (sink, program) = (words.clone(), argv[0].clone());
                let listener = tokio::spawn(async move {
                    while let Ok(Some(line)) = lines.next_line().await {
                        tracing::debug!("{program}: {line}");
                        let mut words = sink.lock().expect("no panic under the lock");
                        if words.len() == LAST_WORDS {
                            words.pop_front();
                        }
                        words.push_back(line);
                    }
                });
                let end = End { program: Some(Program { child, words, listener }) };
                Ok(Stream { reader: Box::new(stdout), writer: Box::new(stdin), end })
            }
        }
    }

    /// Why a stream ended, as far as its program said.
    pub(super) async fn explain(&self, mut end: End, error: &anyhow::Error) -> anyhow::Error {
        let (Dial::Program { argv, advice }, Some(mut program)) = (self, end.program.take()) else {
            return anyhow::anyhow!("{error:#}");
        };
        // A program that closed its output is about to end, or hangs: then it is killed by the drop.
        let ended = async {
            let status = program.child.wait().await;
            let _ = program.listener.await;
            status
        };
        let status = timeout(LAST_WORDS_DEADLINE, ended).await;
        let words: Vec<String> = program.words.lock().expect("no panic under the lock").drain(..).collect();
        let words = words.join("; ");
        let said = match (words.is_empty(), status) {
            (false, _) => format!("{} says: {words}", argv[0]),
            (true, Ok(Ok(status))) => format!("{error:#}; {} ended with {status} and said nothing", argv[0]),
            (true, _) => format!("{error:#}"),
        };
        match advice(&words) {
            Some(advice) => anyhow::anyhow!("{advice} ({said})"),
            None => anyhow::anyhow!("{said}"),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // The whole group: a shell's children hold the stream open too.
        if let Some(program) = &self.program
            && let Some(pid) = program.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()))
        {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::TERM);
        }
    }
}

/// The way out of what ssh said.
fn ssh_advice(destination: &str, words: &str) -> Option<String> {
    if words.contains("Host key verification failed") {
        Some(format!("its host key is not known here: 'ssh {destination}' once, and check the key it shows"))
    } else if words.contains("Permission denied (") {
        Some(format!("it lets nobody in without a password: set up a key ('ssh-copy-id {destination}')"))
    } else if words.contains("not found") {
        Some("it has no lazyroot in its PATH: install it there, or say in config.toml where it is (program)".to_owned())
    } else {
        None
    }
}
