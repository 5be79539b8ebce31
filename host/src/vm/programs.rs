//! Finding the programs that VMs need.

use std::path::PathBuf;

/// The program `name` in `PATH`, else in one of `folders`.
pub fn find(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::env::split_paths(&path).chain(folders.iter().cloned());
    paths.map(|folder| folder.join(name)).find(|path| path.is_file())
}
