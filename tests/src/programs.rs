//! Programs that tests write and run, and servers that they start.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::wait::until_some;

/// Makes a program of a shell script.
///
/// # Panics
/// If it cannot be written.
pub fn write_script(path: &Path, script: &str) {
    install(Path::new("/dev/stdin"), path, &format!("#!/bin/sh\n{script}\n"));
}

/// Copies a program.
///
/// # Panics
/// If it cannot be written.
pub fn copy_program(from: &Path, to: &Path) {
    install(from, to, "");
}

/// A process of its own writes the file. A child that another thread of ours forks meanwhile would inherit our
/// descriptor, and the kernel executes no file that is open for writing (`ETXTBSY`).
fn install(from: &Path, to: &Path, input: &str) {
    let mut command = Command::new("install");
    command.args(["-m", "755"]).arg(from).arg(to).stdin(Stdio::piped());
    let mut child = command.spawn().expect("install(1) is there");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("install(1) reads");
    assert!(child.wait().expect("it is ours").success(), "cannot make {}", to.display());
}

/// Starts a server that listens on a port of 127.0.0.1. `command` makes its command line for a port.
///
/// # Panics
/// If it does not listen.
pub fn start_on_port(what: &str, mut command: impl FnMut(u16) -> Command) -> (Child, u16) {
    until_some(&format!("{what} listens"), || {
        let port = free_port();
        let mut child = command(port).spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        // It ends if somebody else has taken the port.
        let listens = until_some(what, || match child.try_wait().expect("it is ours") {
            Some(_) => Some(false),
            None => TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(true),
        });
        listens.then_some((child, port))
    })
}

/// A port that nobody listens on, below those that the kernel gives to connections and to listeners that ask for any.
/// Each process begins at another.
fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = std::process::id().wrapping_mul(61) + u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (FIRST + number % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
