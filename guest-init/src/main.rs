//! The one program in the initramfs: PID 1, and, under another name, the data plane.

use std::process::ExitCode;

use lazyroot_guest::complain::complain;
use lazyroot_guest::init::{boot, daemon};

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    if name == boot::DAEMON_NAME {
        let started = arguments.next().and_then(|text| text.parse().ok()).unwrap_or_default();
        return match daemon::main(started) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(format_args!("{error:#}"));
                ExitCode::FAILURE
            }
        };
    }
    if std::process::id() == 1 {
        boot::main();
    }
    complain("guest-init is the init of lazyroot's initramfs; to boot a VM use 'lazyroot run'");
    ExitCode::FAILURE
}
