//! Users and groups of the image, looked up in its own files without any of its code.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// Who a program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Home directory; `/` if the image does not say.
    pub home: Vec<u8>,
}

/// Opens a path as a program inside `root` would: symlinks stay inside.
pub fn open_in(root: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

/// `user[:group]`, names or numbers, in the image at `root`; empty is root.
///
/// # Errors
/// If a name is not in the image's `/etc/passwd` or `/etc/group`.
pub fn resolve(root: &OwnedFd, spec: &[u8]) -> Result<User> {
    // An image without these files is fine as long as nobody asks for names.
    let read = |path: &[u8]| {
        let mut text = Vec::new();
        if let Ok(file) = open_in(root, path, OFlags::RDONLY) {
            let _ = File::from(file).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    find(&String::from_utf8_lossy(spec), &read(b"/etc/passwd"), &read(b"/etc/group"))
}

fn find(spec: &str, passwd: &str, group: &str) -> Result<User> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    // name:password:uid:gid:comment:home:shell
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|entry| entry.len() >= 6);
    let number = user.parse::<u32>().ok();
    let entry = entries.find(|entry| entry[0] == user || number.is_some_and(|uid| entry[2].parse() == Ok(uid)));
    let (uid, mut gid, home) = match &entry {
        Some(entry) => (entry[2].parse()?, entry[3].parse()?, entry[5]),
        None => (number.with_context(|| format!("the image has no user '{user}'"))?, 0, "/"),
    };
    // name:password:gid:members
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|entry| entry.len() >= 4);
    if let Some(spec) = group_spec {
        let named = groups().find(|entry| entry[0] == spec).and_then(|entry| entry[2].parse().ok());
        gid = named.or_else(|| spec.parse().ok()).with_context(|| format!("the image has no group '{spec}'"))?;
    }
    let name = entry.map_or("", |entry| entry[0]);
    let member = |entry: &Vec<&str>| !name.is_empty() && entry[3].split(',').any(|member| member == name);
    let supplementary = groups().filter(member).filter_map(|entry| entry[2].parse().ok()).collect();
    Ok(User { uid, gid, groups: supplementary, home: home.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:1000:\nadm:x:4:bob,ann\n";

    #[test]
    fn names_and_numbers_are_found() {
        let ann = find("ann", PASSWD, GROUP).unwrap();
        assert_eq!(ann, User { uid: 1000, gid: 1000, groups: vec![4], home: b"/home/ann".to_vec() });
        assert_eq!(find("1000", PASSWD, GROUP).unwrap(), ann);
        assert_eq!(find("ann:adm", PASSWD, GROUP).unwrap().gid, 4);
        assert_eq!(find("", PASSWD, GROUP).unwrap().home, b"/root");
        assert_eq!(find("77:88", "", "").unwrap(), User { uid: 77, gid: 88, groups: vec![], home: b"/".to_vec() });
    }

    #[test]
    fn unknown_names_are_errors() {
        assert!(find("zoe", PASSWD, GROUP).is_err());
        assert!(find("ann:zoe", PASSWD, GROUP).is_err());
    }
}
