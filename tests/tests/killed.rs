//! Promises about processes that are killed at any moment: the store and a bucket stay whole.

use std::fs::{self};
use std::process::Stdio;
use std::time::Instant;

use lazyroot::store::Store;
use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::data::{numbered, tree_of};
use lazyroot_tests::lazyroot::Lazyroot;
use lazyroot_tests::stores::{assert_sound, files, id_of, object_file, repository};
use serde_json::Value;
use tempfile::TempDir;

/// Runs a command again and again and kills it at moments spread over the time it takes.
fn kill_at_many_moments(
    lazyroot: &Lazyroot,
    times: u32,
    arguments: &[&str],
    mut prepare: impl FnMut(),
    mut check: impl FnMut(),
) {
    prepare();
    let start = Instant::now();
    assert!(lazyroot.run(arguments).status.success());
    let mut whole = start.elapsed();
    for time in 0..times {
        prepare();
        let mut child = lazyroot.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Up to a little more than it takes, in steps that visit all of it (the golden ratio's multiples do).
        let moment = whole.mul_f64(f64::from(time) * 0.618_034 % 1.0 * 1.1);
        std::thread::sleep(moment);
        // The first run was slower, as where the machine was busy then.
        if child.try_wait().unwrap().is_some() {
            whole = whole.min(moment);
        }
        let _ = child.kill();
        child.wait().unwrap();
        check();
    }
}

#[test]
fn killed_at_any_moment_nothing_is_lost_or_wrong() {
    let (lazyroot, kept, other) = (Lazyroot::default(), tree_of(0..150), tree_of(100..250));
    lazyroot.import(kept.path(), "kept");
    let id = id_of(&lazyroot, "kept");
    let dir = format!("dir:{}", other.path().display());
    let whole = |image: &str| {
        let output = lazyroot.run(["store", "verify", image]);
        assert!(output.status.success(), "{image}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // During an import: the other image is there whole or not at all.
    kill_at_many_moments(
        &lazyroot,
        70,
        &["image", "import", &dir, "--name", "other"],
        || {
            lazyroot.run(["image", "rm", "other"]);
            lazyroot.ok(["store", "gc"]);
        },
        || {
            let list: Value = serde_json::from_str(&lazyroot.ok(["image", "ls", "--format", "json"])).unwrap();
            list.as_array().unwrap().iter().filter_map(|image| image["names"][0].as_str()).for_each(whole);
            assert_eq!(id_of(&lazyroot, "kept"), id);
        },
    );
    // During a collection of an image that shares objects with the kept one.
    kill_at_many_moments(
        &lazyroot,
        70,
        &["store", "gc"],
        || {
            lazyroot.import(other.path(), "other");
            lazyroot.ok(["image", "rm", "other"]);
        },
        || {
            whole("kept");
            lazyroot.ok(["store", "gc"]);
            assert_eq!(files(&repository(&lazyroot).join("objects")).len(), 151);
        },
    );
    // During a repair.
    let object = object_file(&lazyroot, &numbered(7, 5000));
    kill_at_many_moments(
        &lazyroot,
        60,
        &["store", "verify", "--repair"],
        || fs::write(&object, numbered(8, 5000)).unwrap(),
        || {
            lazyroot.ok(["store", "verify", "--repair"]);
            assert_eq!(fs::read(&object).unwrap(), numbered(7, 5000));
        },
    );
    assert_sound(&lazyroot);
    lazyroot.ok(["image", "rm", "kept"]);
    lazyroot.ok(["store", "gc"]);
    assert_eq!(files(&repository(&lazyroot).join("objects")), []);
}

#[test]
fn a_push_that_is_killed_at_any_moment_leaves_a_bucket_whole() {
    let (lazyroot, other, bucket) = (Lazyroot::default(), Lazyroot::default(), TempDir::with_prefix("lr").unwrap());
    let source = tree_of(0..150);
    // Sent in parts.
    fs::write(source.path().join("large"), (0..5_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    lazyroot.import(source.path(), "a");
    let image = Store::at(repository(&lazyroot)).unwrap().resolve("a").unwrap();
    let url = format!("file://{}", bucket.path().display());
    let objects = bucket.path().join("objects");
    let push = ["store", "push", &url, "a"];
    let mut interrupted = 0;
    kill_at_many_moments(
        &lazyroot,
        50,
        &push,
        || {
            for folder in ["objects", "images", "names", "leaves"] {
                let _ = fs::remove_dir_all(bucket.path().join(folder));
            }
        },
        || {
            // What is there under an object's name is that object; what was being written has another name.
            for (path, _) in files(&objects) {
                let name = path.strip_prefix(&objects).unwrap().to_str().unwrap().replace('/', "");
                if !name.contains('#') {
                    assert_eq!(verity::digest(Algorithm::Sha256, &fs::read(&path).unwrap()).to_hex(), name);
                }
            }
            match bucket.path().join("names").exists() {
                // A name leads to a whole image.
                true if !files(&bucket.path().join("names")).is_empty() => {
                    for (id, size) in image.index.load().unwrap().entries() {
                        assert_eq!(fs::metadata(objects.join(id.object_path())).unwrap().len(), *size);
                    }
                }
                _ => interrupted += 1,
            }
        },
    );
    assert!(interrupted >= 10, "the push was interrupted {interrupted} times only");
    // The last one is completed, and served.
    lazyroot.ok(push);
    let copy = bucket.path().join("copy");
    other.ok(["store", "cp", "--upstream", &url, "a:/", copy.to_str().unwrap()]);
    lazyroot_tests::tree::assert_same(source.path(), &copy);
}
