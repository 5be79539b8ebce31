//! See [`lazyroot_tests::vfkit`].

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--version"] {
        println!("vfkit version: v0.6.1");
        return ExitCode::SUCCESS;
    }
    match lazyroot_tests::vfkit::run(&arguments) {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("the VM ended with {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
