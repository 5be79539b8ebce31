//! The system calls that no crate wraps safely; all `unsafe` of the guest is here, but for what is shared with the kernel
//! in `fuse::ring::entry`.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
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

/// Appends exactly `len` bytes from `stream` to `buffer`, into memory that nobody has zeroed before.
pub fn append_exactly(stream: &impl AsFd, buffer: &mut Vec<u8>, len: usize) -> io::Result<()> {
    buffer.reserve_exact(len);
    let end = buffer.len() + len;
    while buffer.len() < end {
        let missing = end - buffer.len();
        let read = match rustix::io::read(stream, &mut buffer.spare_capacity_mut()[..missing]) {
            Ok((read, _)) => read.len(),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the kernel has filled so many bytes behind the last.
        unsafe { buffer.set_len(buffer.len() + read) };
    }
    Ok(())
}

/// The content of `file`, a memfd of this process's own, to be changed in place.
pub fn map_shared(file: &std::fs::File) -> io::Result<memmap2::MmapMut> {
    // SAFETY: nobody else has the file, so nobody truncates it or changes it under the map.
    unsafe { memmap2::MmapMut::map_mut(file) }
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

/// Grows the ext4 that `dir` is on to `blocks` of its blocks (`EXT4_IOC_RESIZE_FS`, the kernel's fs/ext4/ext4.h).
pub fn grow_ext4(dir: &impl AsFd, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
    // SAFETY: the request reads one u64 and keeps no pointer.
    let result = unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A file system that nobody can write to until this is dropped.
pub struct Frozen<F: AsFd>(F);

/// Writes the file system of `dir` to its disk and lets writers wait (`FIFREEZE`, ioctl_fs(2) and linux/fs.h).
///
/// # Errors
/// If it is of a kind that cannot, as a tmpfs is.
pub fn freeze<F: AsFd>(dir: F) -> io::Result<Frozen<F>> {
    const FIFREEZE: u64 = 0xc004_5877;
    // SAFETY: the request uses no argument.
    let result = unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), FIFREEZE as _, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Frozen(dir)) }
}

impl<F: AsFd> Drop for Frozen<F> {
    fn drop(&mut self) {
        const FITHAW: u64 = 0xc004_5878;
        // SAFETY: the request uses no argument. It fails if somebody else was faster.
        unsafe { libc::ioctl(self.0.as_fd().as_raw_fd(), FITHAW as _, 0) };
    }
}

/// The file with the inode `number` and generation 0 on the file system of the folder `mount`, opened for reading
/// (open_by_handle_at(2)).
///
/// # Errors
/// `ESTALE` if the file system knows no such inode, or has other handles than EROFS.
pub fn open_inode(mount: &impl AsFd, number: u32) -> io::Result<OwnedFd> {
    /// `FILEID_INO32_GEN` of the kernel's linux/exportfs.h: the inode's number and its generation. EROFS until 2025.
    const INO32_GEN: libc::c_int = 1;
    /// `FILEID_INO64_GEN`: the number's upper half, its lower half, and the generation. EROFS since,
    /// in stable kernels too.
    const INO64_GEN: libc::c_int = 0x81;
    /// `struct file_handle` of linux/fcntl.h, with room for both.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        words: [u32; 3],
    }
    let open = |kind, len: usize, words| {
        let mut handle = Handle { bytes: (len * size_of::<u32>()) as libc::c_uint, kind, words };
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the call reads a handle of the length that it begins with, which is no more than there is, and keeps no
        // pointer.
        let file = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut handle).cast(), flags) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just opened, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(file) })
    };
    open(INO64_GEN, 3, [0, number, 0]).or_else(|_| open(INO32_GEN, 2, [number, 0, 0]))
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
        // Nor is that it does without huge pages: programs may be faster with them.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
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

/// Makes `root` the root folder of this thread, and of no other.
pub fn enter_root(root: &impl AsFd) -> io::Result<()> {
    // SAFETY: the root and working folder become the thread's own; no descriptor table, and so none that other code
    // relies on, is touched.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
    rustix::process::fchdir(root)?;
    Ok(rustix::process::chroot(c".")?)
}

/// A request about the network interface `name`.
fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name's end.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// An IPv4 address as the kernel's interfaces take it.
fn ipv4_address(address: [u8; 4]) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of the same 16 bytes; that is how the kernel tells families apart.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

fn network_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, socket};
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

/// Gives the network interface `name` an IPv4 address and the netmask of its network (`SIOCSIFADDR`, `SIOCSIFNETMASK`,
/// netdevice(7)).
pub fn set_address(name: &str, address: [u8; 4], netmask: [u8; 4]) -> io::Result<()> {
    let socket = network_socket()?;
    for (number, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, netmask)] {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_addr = ipv4_address(value);
        // SAFETY: the request reads one ifreq and keeps no pointer.
        if unsafe { libc::ioctl(socket.as_raw_fd(), number as _, &raw const request) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Adds the IPv4 route to everywhere over `gateway` (`SIOCADDRT`, route(8)). One that is there already is fine.
pub fn add_default_route(gateway: [u8; 4]) -> io::Result<()> {
    let socket = network_socket()?;
    // SAFETY: an all-zero rtentry is a valid one.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = ipv4_address([0; 4]);
    route.rt_genmask = ipv4_address([0; 4]);
    route.rt_gateway = ipv4_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the request reads one rtentry, whose device pointer is null, and keeps no pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
    match result {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            error => Err(error),
        },
    }
}

/// Brings the network interface `name` up (`SIOCSIFFLAGS`, netdevice(7)).
pub fn bring_up(name: &str) -> io::Result<()> {
    let socket = network_socket()?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request reads one ifreq and keeps no pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
