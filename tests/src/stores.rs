//! A home's store as tests look at it: its files, its images, and what commands print about them.

use std::fs;
use std::path::{Path, PathBuf};

use lazyroot::store::Store;
use lazyroot_proto::{Algorithm, verity};
use serde_json::Value;

use crate::lazyroot::Lazyroot;

/// Where a home's repository is.
pub fn repository(lazyroot: &Lazyroot) -> PathBuf {
    lazyroot.home().join("repository")
}

/// The home's store.
pub fn store(lazyroot: &Lazyroot) -> Store {
    Store::at(repository(lazyroot)).unwrap()
}

/// The file of the object with this content.
pub fn object_file(lazyroot: &Lazyroot, data: &[u8]) -> PathBuf {
    let id = verity::digest(Algorithm::Sha256, data);
    repository(lazyroot).join("objects").join(id.object_path())
}

/// All files below a folder, with their sizes; none if the folder is not there.
pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        match meta.is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push((entry.path(), meta.len())),
        }
    }
    found.sort();
    found
}

/// The digest and the name that `lazyroot image import` printed.
pub fn import(lazyroot: &Lazyroot, source: &str) -> (String, String) {
    let line = lazyroot.ok(["image", "import", source]);
    let (id, name) = line.trim_end().split_once(' ').unwrap();
    (id.to_owned(), name.to_owned())
}

/// What `lazyroot image inspect` prints.
pub fn inspect(lazyroot: &Lazyroot, image: &str) -> Value {
    serde_json::from_str(&lazyroot.ok(["image", "inspect", image])).unwrap()
}

/// The digest of an image.
pub fn id_of(lazyroot: &Lazyroot, image: &str) -> String {
    inspect(lazyroot, image)["id"].as_str().unwrap().to_owned()
}

/// Fails unless every object of every image that is there is sound.
pub fn assert_sound(lazyroot: &Lazyroot) {
    let output = lazyroot.run(["store", "verify"]);
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// Fails if anything in the repository is not an object, an image, a stream or what lazyroot says it keeps.
pub fn assert_no_leftovers(repository: &Path) {
    for (file, _) in files(&repository.join("objects")) {
        let name = file.strip_prefix(repository.join("objects")).unwrap().to_str().unwrap();
        let is_object = name.len() == 65 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'/');
        assert!(is_object, "{} is no object", file.display());
    }
    assert_eq!(files(&repository.join("lazyroot/tmp")), []);
}
