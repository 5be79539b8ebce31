//! A lazyroot of a test's own: the program as built, with folders that nothing else uses.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::inputs::{GUEST_INIT, LAZYROOT, VHOST_DEVICE_VSOCK, VIRTIOFSD, need_root};
use crate::wait::PATIENCE;

/// The lazyroot program, which finds guest-init and its helpers where the tests do.
pub fn program() -> Command {
    let mut command = Command::new(LAZYROOT.path());
    for helper in [VHOST_DEVICE_VSOCK, VIRTIOFSD, GUEST_INIT] {
        // Tests of arm64 guests have two guest-inits, of which lazyroot has to choose by itself.
        let is_for_lazyroot = !cfg!(feature = "arm64") || helper.variable != GUEST_INIT.variable;
        if let Some(path) = helper.find().filter(|_| is_for_lazyroot) {
            command.env(helper.variable, path);
        }
    }
    command
}

/// Gives a program that starts another its environment.
pub fn give_environment(outer: &mut Command, inner: &Command) {
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
}

/// The program with a home of its own, removed when dropped.
pub struct Lazyroot {
    home: TempDir,
}

impl Default for Lazyroot {
    fn default() -> Self {
        Self { home: TempDir::with_prefix("lr").expect("a folder for temporary files") }
    }
}

impl Lazyroot {
    /// A command line of this lazyroot.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = program();
        command.env("LAZYROOT_HOME", self.home()).env_remove("LAZYROOT_STORE").env_remove("XDG_RUNTIME_DIR");
        command.env("XDG_CONFIG_HOME", self.home().join("config")).env_remove("LAZYROOT_SSH");
        command.args(arguments);
        command
    }

    /// Its `LAZYROOT_HOME`.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs a command line to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("the lazyroot program starts")
    }

    /// Runs a command line that must succeed; returns its standard output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(arguments);
        let output = command.stdin(Stdio::null()).output().expect("the lazyroot program starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} failed with {}: {errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command line that must fail as lazyroot's own errors do; returns what it said.
    pub fn error<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(arguments);
        let output = command.stdin(Stdio::null()).output().expect("the lazyroot program starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{command:?}: {errors}");
        assert!(errors.starts_with("lazyroot: "), "{errors}");
        errors
    }

    /// Writes its `config.toml`.
    pub fn configure(&self, text: &str) {
        let dir = self.home().join("config/lazyroot");
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join("config.toml"), text))
            .expect("home is ours");
    }

    /// Imports a directory under a name.
    pub fn import(&self, dir: &Path, name: &str) {
        self.ok(["image", "import", &format!("dir:{}", dir.display()), "--name", name]);
    }

    /// Imports the test's kernel.
    pub fn import_kernel(&self) {
        let deb = crate::kernel_deb();
        self.ok([OsStr::new("kernel"), OsStr::new("import"), deb.as_os_str()]);
    }

    /// The program's own processes that still run: those with its home in their environment, this one excepted. In a
    /// home that tests share they are those of all of them.
    pub fn processes(&self) -> Vec<u32> {
        let mark = [b"LAZYROOT_HOME=", self.home().as_os_str().as_encoded_bytes()].concat();
        let pids = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark)
        })
        .collect()
    }

    /// Asserts that [`Lazyroot::processes`] end, soon. They may be slow on a busy machine; they may not stay.
    pub fn assert_nothing_runs(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.processes().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let cmdline = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let left: Vec<String> = self.processes().into_iter().map(|pid| crate::text(&cmdline(pid))).collect();
        assert!(left.is_empty(), "no process is left, but {left:?}");
    }

    /// Mounts an image at a fresh folder.
    pub fn mount(&self, image: &str, options: &[&str]) -> Mount<'_> {
        self.mount_with(image, options, &[])
    }

    /// Mounts an image at a fresh folder, with variables in the mount's environment.
    pub fn mount_with(&self, image: &str, options: &[&str], variables: &[(&str, &str)]) -> Mount<'_> {
        need_root();
        let dir = TempDir::with_prefix("lr").expect("a folder for temporary files");
        let arguments = ["mount", image].into_iter().chain(options.iter().copied());
        let mut command = self.command(arguments);
        command.arg(dir.path()).envs(variables.iter().copied());
        let output = command.output().expect("the lazyroot program starts");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Mount { lazyroot: self, dir }
    }

    /// Starts an object server on a socket in its home.
    pub fn serve(&self) -> Server {
        let socket = self.home().join("server.sock");
        self.serve_at(&format!("unix:{}", socket.display()), socket)
    }

    /// Starts an object server with further options.
    pub fn serve_with(&self, options: &[&str]) -> Server {
        let socket = self.home().join("server.sock");
        self.start_server(&format!("unix:{}", socket.display()), socket, options, Stdio::inherit())
    }

    /// Starts an object server whose standard error is a pipe that nobody reads any more.
    pub fn serve_unheard(&self) -> Server {
        let socket = self.home().join("server.sock");
        let (reader, stderr) = std::io::pipe().expect("a pipe");
        drop(reader);
        self.start_server(&format!("unix:{}", socket.display()), socket, &[], stderr.into())
    }

    /// Starts a server for other lazyroots.
    pub fn serve_peers(&self) -> Peer {
        let socket = self.home().join("peer.sock");
        let upstream = format!("unix:{}", socket.display());
        let mut child = self.command(["serve", "--peer", &upstream]).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the server says something");
        assert_eq!(line.trim_end(), format!("listening on {upstream} for other lazyroots"));
        Peer { child, upstream, socket }
    }

    /// Starts an object server that listens on `endpoint`, which is the unix socket `socket`.
    pub fn serve_at(&self, endpoint: &str, socket: PathBuf) -> Server {
        self.start_server(endpoint, socket, &[], Stdio::inherit())
    }

    fn start_server(&self, endpoint: &str, socket: PathBuf, options: &[&str], stderr: Stdio) -> Server {
        let mut command = self.command(["serve", "--listen", endpoint]);
        command.args(options).stderr(stderr);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the lazyroot program starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut server = Server { child, stdout, endpoint: endpoint.to_owned(), socket };
        assert_eq!(server.next_line(), format!("listening on unix:{}", server.socket.display()));
        server
    }
}

/// A mounted image, unmounted when dropped.
pub struct Mount<'a> {
    lazyroot: &'a Lazyroot,
    dir: TempDir,
}

impl Mount<'_> {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let arguments = [OsStr::new("umount"), OsStr::new("--lazy"), self.dir.path().as_os_str()];
        let output = self.lazyroot.run(arguments);
        if !output.status.success() && !std::thread::panicking() {
            panic!("cannot unmount: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// A running object server, ended when dropped.
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    endpoint: String,
    socket: PathBuf,
}

impl Server {
    /// Its address, for `--connect`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next line that it says.
    pub fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the server says something");
        line.trim_end().to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once, as a crash would.
    pub fn crash(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was ours");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running server of other lazyroots, ended when dropped.
pub struct Peer {
    child: Child,
    upstream: String,
    socket: PathBuf,
}

impl Peer {
    /// Its address, for `--upstream`.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
