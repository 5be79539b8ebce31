//! Promises about images in a bucket: a real S3 server over HTTP, and a proxy that breaks what can break.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use lazyroot_proto::{Algorithm, verity};
use lazyroot_tests::lazyroot::{Lazyroot, Mount};
use lazyroot_tests::s3::{BUCKET, Fault, Proxy, S3};
use lazyroot_tests::wait::until;
use lazyroot_tests::{data, rootfs, tree};
use serde_json::Value;
use tempfile::TempDir;

fn bucket() -> String {
    format!("s3://{BUCKET}/some/prefix")
}

/// A tree of small files, all different, and two large ones.
fn small_tree(count: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..count {
        let content: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(5000 + number as usize).collect();
        fs::write(dir.path().join(format!("f{number}")), content).unwrap();
    }
    data::write_unique(&dir.path().join("large"), 1_000_001, 7).unwrap();
    data::write_unique(&dir.path().join("larger"), 20_000_001, 8).unwrap();
    dir
}

type Variables = Vec<(String, String)>;

fn try_push(lazyroot: &Lazyroot, to: &str, image: &str, variables: &Variables) -> Output {
    let mut command = lazyroot.command(["store", "push", to, image, "--format", "json"]);
    command.envs(variables.iter().cloned()).stdin(Stdio::null()).output().unwrap()
}

fn push(lazyroot: &Lazyroot, to: &str, image: &str, variables: &Variables) -> Value {
    let output = try_push(lazyroot, to, image, variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn mount<'a>(lazyroot: &'a Lazyroot, image: &str, options: &[&str], variables: &Variables) -> Mount<'a> {
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    lazyroot.mount_with(image, options, &variables)
}

#[test]
fn a_pushed_image_is_the_imported_tree_on_another_host_and_little_more_is_fetched_than_read() {
    let (s3, here, there) = (S3::default(), Lazyroot::default(), Lazyroot::default());
    // A few hundred real files, from links to tens of MiB.
    let source = rootfs().join("usr/bin");
    here.import(&source, "debian");
    let pushed = push(&here, &bucket(), "debian", &s3.variables());
    assert!(pushed["objects"].as_u64().unwrap() > 200 && pushed["present"] == 0, "{pushed}");
    let again = push(&here, &bucket(), "debian", &s3.variables());
    assert_eq!((&again["objects"], &again["present"]), (&0.into(), &pushed["objects"]));

    let proxy = Proxy::new(&s3, Duration::ZERO, Box::new(|_, _, _| Fault::None));
    let mounted = mount(&there, "debian", &["--upstream", &bucket()], &proxy.variables());
    let (files, bytes) = tree::assert_same(&source, mounted.path());
    assert!(files > 200 && bytes > 10 << 20, "{files} files, {bytes} bytes");
    let fetched = proxy.counts().bytes.load(Ordering::Relaxed);
    assert!(fetched * 10 <= bytes * 12, "{fetched} bytes fetched for {bytes} read");
    drop(mounted);
    // The cache has it all now.
    let before = proxy.counts().requests.load(Ordering::Relaxed);
    let mounted = mount(&there, "debian", &["--upstream", &bucket()], &proxy.variables());
    tree::assert_same(&source, mounted.path());
    let asked = proxy.counts().requests.load(Ordering::Relaxed) - before;
    assert!(asked <= 3, "{asked} requests besides the name's");
}

#[test]
fn a_push_sends_what_is_missing_and_goes_on_after_an_interruption() {
    let (s3, here, there) = (S3::default(), Lazyroot::default(), Lazyroot::default());
    let source = small_tree(300);
    here.import(source.path(), "one");
    // The server fails for good after some requests: the push ends in the middle.
    let proxy = Proxy::new(
        &s3,
        Duration::ZERO,
        Box::new(|number, _, _| if number < 150 { Fault::None } else { Fault::HangUp }),
    );
    let mut child = here.command(["store", "push", &bucket(), "one"]);
    let mut child = child.envs(proxy.variables()).stderr(Stdio::null()).spawn().unwrap();
    until("the server fails", || proxy.counts().faults.load(Ordering::Relaxed) > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!s3.folder().join("some/prefix/names").exists(), "no name for half an image");
    let pushed = push(&here, &bucket(), "one", &s3.variables());
    let (sent, present) = (pushed["objects"].as_u64().unwrap(), pushed["present"].as_u64().unwrap());
    assert!(present >= 30 && sent >= 100 && sent + present == 302, "{pushed}");

    // Another image that differs in one file.
    fs::write(source.path().join("f7"), vec![b'n'; 6000]).unwrap();
    here.import(source.path(), "two");
    let pushed = push(&here, &bucket(), "two", &s3.variables());
    assert_eq!((&pushed["objects"], &pushed["bytes"]), (&1.into(), &6000.into()));
    let mounted = mount(&there, "two", &["--upstream", &bucket()], &s3.variables());
    tree::assert_same(source.path(), mounted.path());
}

#[test]
fn throttling_errors_and_broken_answers_are_met_with_another_try() {
    let (s3, here, there) = (S3::default(), Lazyroot::default(), Lazyroot::default());
    let source = small_tree(300);
    here.import(source.path(), "many");
    let faults = |number: u64, method: &str, _: &str| match number % 12 {
        2 => Fault::SlowDown,
        5 => Fault::Internal,
        7 => Fault::HangUp,
        9 if method == "GET" => Fault::Truncated,
        11 if method == "GET" => Fault::Damaged,
        _ => Fault::None,
    };
    let proxy = Proxy::new(&s3, Duration::ZERO, Box::new(faults));
    push(&here, &bucket(), "many", &proxy.variables());
    let mounted = mount(&there, "many", &["--upstream", &bucket()], &proxy.variables());
    tree::assert_same(source.path(), mounted.path());
    assert!(proxy.counts().faults.load(Ordering::Relaxed) > 100);
}

#[test]
fn a_server_that_falls_silent_is_passed_over_for_the_next() {
    let (s3, here, there) = (S3::default(), Lazyroot::default(), Lazyroot::default());
    let source = small_tree(3);
    here.import(source.path(), "few");
    push(&here, &bucket(), "few", &s3.variables());
    let folder = tempfile::tempdir().unwrap();
    let other = format!("file://{}", folder.path().display());
    push(&here, &other, "few", &Variables::new());
    // It gives the image, and then no object.
    let silent = |_: u64, _: &str, path: &str| match path.contains("/objects/") {
        true => Fault::Silent(Duration::from_secs(60)),
        false => Fault::None,
    };
    let proxy = Proxy::new(&s3, Duration::ZERO, Box::new(silent));
    let options = ["--upstream", &bucket(), "--upstream", &other];
    let mounted = mount(&there, "few", &options, &proxy.variables());
    tree::assert_same(source.path(), mounted.path());
}

#[test]
fn a_folder_is_a_bucket_and_damage_in_it_is_an_error() {
    let (here, there, source) = (Lazyroot::default(), Lazyroot::default(), small_tree(20));
    here.import(source.path(), "few");
    let folder = tempfile::tempdir().unwrap();
    let to = format!("file://{}/new", folder.path().display());
    push(&here, &to, "few", &Variables::new());
    let mounted = mount(&there, "few", &["--upstream", &to], &Variables::new());
    tree::assert_same(source.path(), mounted.path());
    drop(mounted);
    let content = fs::read(source.path().join("f3")).unwrap();
    let id = verity::digest(Algorithm::Sha256, &content);
    let file = folder.path().join("new/objects").join(id.object_path());
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(b"\xff", 77).unwrap();
    let other = Lazyroot::default();
    let mounted = mount(&other, "few", &["--upstream", &to], &Variables::new());
    assert_eq!(fs::read(mounted.path().join("f3")).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(fs::read(mounted.path().join("f4")).unwrap(), fs::read(source.path().join("f4")).unwrap());
}

#[test]
fn what_cannot_be_pushed_says_why() {
    let (s3, here, source) = (S3::default(), Lazyroot::default(), small_tree(5));
    here.import(source.path(), "few");
    let said = |to: &str, variables: &Variables| {
        let output = try_push(&here, to, "few", variables);
        assert_eq!(output.status.code(), Some(125), "{to}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.lines().filter(|line| line.starts_with("lazyroot: ")).count(), 1, "{error}");
        error
    };
    let mut wrong_key = s3.variables();
    wrong_key.iter_mut().find(|(name, _)| name == "AWS_SECRET_ACCESS_KEY").unwrap().1 = "another".into();
    let error = said(&bucket(), &wrong_key);
    assert!(error.contains("SignatureDoesNotMatch") && error.contains(&bucket()), "{error}");
    assert!(said("unix:/run/x", &Variables::new()).contains("cannot push to unix:/run/x"));
    let content = fs::read(source.path().join("f3")).unwrap();
    let id = verity::digest(Algorithm::Sha256, &content);
    let object = here.home().join("repository/objects").join(id.object_path());
    fs::OpenOptions::new().write(true).open(object).unwrap().write_all_at(b"\xff", 77).unwrap();
    let error = said(&bucket(), &s3.variables());
    assert!(error.contains(&id.to_string()) && error.contains("damaged"), "{error}");
    assert!(!Path::new(&s3.folder().join("some/prefix/names")).exists());
}
