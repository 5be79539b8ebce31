//! The system calls that no crate wraps safely; all `unsafe` of the guest is here.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Gid, Mode, OFlags, Uid};

/// Sets the receive window of a vsock stream, in bytes (`SO_VM_SOCKETS_BUFFER_SIZE` and its maximum, vsock(7)).
pub fn set_vsock_window(stream: &impl AsFd, bytes: u64) -> io::Result<()> {
    // From linux/vm_sockets.h; libc does not have the second. The maximum first: the size is clamped to it.
    const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
    const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
    for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
        // SAFETY: the descriptor is open for the call, and the pointer and length are those of a live u64,
        // which is what both options take.
        let result = unsafe {
            libc::setsockopt(
                stream.as_fd().as_raw_fd(),
                libc::AF_VSOCK,
                option,
                (&raw const bytes).cast(),
                size_of::<u64>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The number of a free loop device (`LOOP_CTL_GET_FREE`, loop(4)).
pub fn free_loop_device(control: &impl AsFd) -> io::Result<i32> {
    const LOOP_CTL_GET_FREE: u64 = 0x4c82;
    // SAFETY: the request takes no argument and returns a number or -1.
    let number = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Attaches `file` to the loop device `device`, read-only, to be freed at its last close (`LOOP_CONFIGURE`).
pub fn configure_loop_device(device: &impl AsFd, file: &impl AsFd) -> io::Result<()> {
    const LOOP_CONFIGURE: u64 = 0x4c0a;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// `struct loop_config` of linux/loop.h: fd, block size, `struct loop_info64` (232 bytes), 8 reserved words.
    #[repr(C)]
    struct LoopConfig {
        fd: u32,
        block_size: u32,
        info_start: [u8; 52],
        flags: u32,
        info_rest: [u8; 176],
        reserved: [u64; 8],
    }
    let config = LoopConfig {
        fd: file.as_fd().as_raw_fd() as u32,
        block_size: 4096,
        info_start: [0; 52],
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        info_rest: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: the request reads one `struct loop_config`, which `config` is laid out as, and keeps no pointer.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes as the operating system's string: on Linux they are the same.
pub fn os_string(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// User and groups of a program.
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// Whether a program's standard input becomes its controlling terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Controlling {
    /// It does not.
    No,
    /// It does.
    Stdin,
}

/// Makes `command` start as the leader of a session, inside `root`, in `workdir`, as `identity`, and as likely to
/// be chosen by the OOM killer as any program.
pub fn prepare_program(
    command: &mut Command,
    root: &OwnedFd,
    workdir: &[u8],
    identity: Identity,
    controlling: Controlling,
) -> io::Result<()> {
    let root = root.try_clone()?;
    let workdir = CString::new(workdir)?;
    let groups: Vec<Gid> = identity.groups.into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let enter = move || {
        rustix::process::setsid()?;
        if controlling == Controlling::Stdin {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(c".")?;
        rustix::process::chdir(&workdir)?;
        // The daemon's own protection is not for programs. Best effort: an image may hide /proc.
        if let Ok(score) =
            rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        {
            let _ = rustix::io::write(&score, b"0");
        }
        // A forked child has one thread: setting that thread's ids sets the process's.
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_gid(gid)?;
        rustix::thread::set_thread_uid(uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only, on values captured before: it neither
    // allocates nor takes a lock.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Asks systemd, as PID 1, to power off: `SIGRTMIN+4` starts `poweroff.target` (systemd(1)).
pub fn ask_systemd_to_power_off() -> io::Result<()> {
    // SAFETY: no memory is involved; a number that is no signal is an error.
    let result = unsafe { libc::kill(1, libc::SIGRTMIN() + 4) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the loopback interface up: programs expect 127.0.0.1 even where no init configures a network.
pub fn bring_up_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is a valid one; the request reads its name and flags and keeps no pointer.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
