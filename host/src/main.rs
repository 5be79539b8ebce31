//! The `lazyroot` program.

fn main() -> std::process::ExitCode {
    lazyroot::cli::main()
}
