//! Images that are elsewhere: boots from a bucket with time added to each request, and whole trees through another
//! lazyroot, over memory and over a slow link, with and without compression.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lazyroot::store::Store;

use super::inputs::{Inputs, run};
use super::plan::Plan;
use super::report::{Cell, Report, cache};
use super::vm;
use crate::lazyroot::Lazyroot;
use crate::rootfs;
use crate::s3::{BUCKET, Fault, Proxy, S3};

/// The name of the part that boots from a bucket.
pub const BUCKET_PART: &str = "bucket";

/// The name of the part that reads through another lazyroot.
pub const PEER_PART: &str = "peer";

/// What the two compare with.
const NEVER: &str = "never compressed";

/// Milliseconds added to each request to the bucket: a local server, one nearby, one in another zone.
const DELAYS: [u64; 3] = [0, 5, 20];

/// Links in bytes a second, besides a socket: wireless, and around where compression stops to pay.
const LINKS: [u64; 3] = [25_000_000, 100_000_000, 400_000_000];

/// What is run, in a VM or on a mount.
const COMMANDS: [(&str, Way, &[&str]); 3] = [
    ("boot to cat /etc/os-release", Way::Boot, &["cat", "/etc/os-release"]),
    ("boot to python3 -c 'import json, ssl'", Way::Boot, &["python3", "-c", "import json, ssl"]),
    ("mount to python3 -c 'import json, ssl'", Way::Mount, &["python3", "-c", "import json, ssl"]),
];

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Boot,
    Mount,
}

/// How long a mount's process may take to write down what was read.
const PROFILE_DEADLINE: Duration = Duration::from_secs(10);

/// Boots and mounts an image that is in a bucket, with the profile of a boot or mount that did the same where the image
/// came from.
///
/// # Errors
/// If anything cannot be set up, or a VM fails twice.
pub fn bucket(_inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    let (far, s3, near) = (Lazyroot::default(), S3::default(), Lazyroot::default());
    far.import(&rootfs(), "debian");
    far.import_kernel();
    near.import_kernel();
    let store = Store::at(far.home().join("repository"))?;
    let image = store.resolve("debian")?;
    let index = image.index.load()?;
    let url = format!("s3://{BUCKET}");
    report.compare(BUCKET_PART, &system(DELAYS[0]));
    let upstream = ["--upstream", url.as_str()];
    for (number, (name, way, command)) in COMMANDS.into_iter().enumerate() {
        // What is read is written down, and comes along with the image.
        store.profile(&image.id).remove()?;
        once(&far, way, &[], &[], command)?;
        let begin = Instant::now();
        let read = loop {
            match store.profile(&image.id).read() {
                Some(profile) => break profile.bytes(&index),
                None => ensure!(begin.elapsed() < PROFILE_DEADLINE, "no profile was written"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        let pushed = far.command(["store", "push", &url, "debian"]).envs(s3.variables()).output()?;
        ensure!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        if number == 0 {
            // Makes the initramfs, which every later launch shares.
            once(&near, way, &upstream, &s3.variables(), command)?;
        }
        for round in 0..plan.samples as usize {
            for step in 0..DELAYS.len() {
                let delay = DELAYS[(step + round) % DELAYS.len()];
                let cell = Cell::new(BUCKET_PART, name, cache::COLD, &system(delay));
                let (time, bytes, requests) = vm::twice_at_most(report, &cell, || {
                    // A host that has never seen the image.
                    for kept in ["cache/objects", "cache/images", "repository/lazyroot"] {
                        fs::remove_dir_all(near.home().join(kept)).or_else(absent)?;
                    }
                    let proxy = Proxy::new(&s3, Duration::from_millis(delay), Box::new(|_, _, _| Fault::None));
                    let time = once(&near, way, &upstream, &proxy.variables(), command)?;
                    let counts = proxy.counts();
                    Ok((time, counts.bytes.load(Ordering::Relaxed), counts.requests.load(Ordering::Relaxed)))
                })?;
                report.add(&cell, time.as_secs_f64(), Some((bytes, requests)));
                if delay == DELAYS[0] && round == 0 {
                    // The manifest is read too.
                    let read = read + fs::metadata(&image.manifest)?.len();
                    let ratio = bytes as f64 / read as f64;
                    report.note(&cell, &format!("{ratio:.2} of the {:.1} MB that are read", read as f64 / 1e6));
                }
            }
        }
    }
    Ok(())
}

fn system(delay: u64) -> String {
    format!("{delay} ms a request")
}

/// From lazyroot's start to the command's end.
fn once(
    lazyroot: &Lazyroot,
    way: Way,
    options: &[&str],
    variables: &[(String, String)],
    command: &[&str],
) -> Result<Duration> {
    let begin = Instant::now();
    if way == Way::Mount {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mount = lazyroot.mount_with("debian", options, &variables);
        run(Command::new("chroot").arg(mount.path()).args(command))?;
        return Ok(begin.elapsed());
    }
    let mut program = lazyroot.command(["run", "--hypervisor", "qemu:tcg"]);
    program.args(options).args(["debian", "--"]).args(command).envs(variables.iter().cloned()).stdin(Stdio::null());
    run(&mut program)?;
    Ok(begin.elapsed())
}

/// That something is not there is fine.
fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Reads a whole tree through another lazyroot.
///
/// # Errors
/// If anything cannot be set up.
pub fn peer(inputs: &Inputs, plan: &Plan, report: &mut Report) -> Result<()> {
    let far = Lazyroot::default();
    far.import(&rootfs(), "debian");
    let server = far.serve_peers();
    report.compare(PEER_PART, NEVER);
    let mut links = vec![("a socket".to_owned(), server.socket().to_owned())];
    for speed in LINKS {
        let path = inputs.fresh(&format!("link-{speed}"))?;
        slow_link(&path, server.socket().to_owned(), speed)?;
        links.push((format!("{} MB/s", speed / 1_000_000), path));
    }
    for (link, socket) in &links {
        let workload = format!("tar cf - / | cat, over {link}");
        for _ in 0..plan.samples {
            for (mode, system) in [("never", NEVER), ("always", "always compressed"), ("auto", "measured")] {
                let near = Lazyroot::default();
                let url = format!("unix:{}", socket.display());
                near.configure(&format!("[[upstream]]\nurl = \"{url}\"\ncompression = \"{mode}\"\n"));
                let mount = near.mount("debian", &["--cache-size", "0"]);
                let begin = Instant::now();
                let tar = format!("tar cf - -C {} . | cat >/dev/null", mount.path().display());
                ensure!(Command::new("sh").args(["-c", &tar]).status()?.success(), "tar failed");
                let cell = Cell::new(PEER_PART, &workload, cache::COLD, system);
                report.add(&cell, begin.elapsed().as_secs_f64(), None);
            }
        }
    }
    links.iter().skip(1).try_for_each(|(_, path)| Ok(fs::remove_file(path)?))
}

/// A socket at `path` that leads to `to`, from where so many bytes a second come and no more.
fn slow_link(path: &Path, to: PathBuf, speed: u64) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&to) else { return };
            let (Ok(mut from_near), Ok(mut to_far)) = (near.try_clone(), far.try_clone()) else { return };
            thread::spawn(move || std::io::copy(&mut from_near, &mut to_far));
            thread::spawn(move || slow_copy(far, near, speed));
        }
    });
    Ok(())
}

fn slow_copy(mut from: UnixStream, mut to: UnixStream, speed: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    // When the link is free again.
    let mut free = Instant::now();
    loop {
        let len = from.read(&mut buffer)?;
        if len == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
        free = free.max(Instant::now()) + Duration::from_nanos(len as u64 * 1_000_000_000 / speed);
        thread::sleep(free.saturating_duration_since(Instant::now()));
        to.write_all(&buffer[..len])?;
    }
}
