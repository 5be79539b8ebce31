//! OCI layouts made by hand, and what an import of one must show.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lazyroot::Lazyroot;
use crate::mounts::Mounted;
use crate::stores::repository;
use crate::temporary;

/// An OCI image layout made by hand; layers come from tar.
pub struct Layout(TempDir);

impl Layout {
    /// One tag for each configuration, all with the same layers.
    pub fn new(layers: &[Vec<u8>], tags: &[(&str, Value)]) -> Self {
        let dir = temporary();
        let layout = Self(dir);
        fs::create_dir_all(layout.0.path().join("blobs/sha256")).unwrap();
        fs::write(layout.0.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layers: Vec<_> = layers.iter().map(|l| layout.blob("application/vnd.oci.image.layer.v1.tar", l)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        let mut manifests = Vec::new();
        for (tag, run) in tags {
            let config = json!({
                "architecture": "amd64", "os": "linux", "config": run,
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": [
                { "created": "2025-08-09T00:00:00Z", "created_by": "ADD below", "comment": "the \u{1b}[31mfirst" },
                { "created": "2025-08-10T00:00:00Z", "created_by": "ENV A=b", "empty_layer": true },
            ],
            });
            let config = layout.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
            let manifest = "application/vnd.oci.image.manifest.v1+json";
            let document = json!({ "schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers });
            let mut manifest = layout.blob(manifest, document.to_string().as_bytes());
            manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
            manifests.push(manifest);
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(layout.0.path().join("index.json"), index.to_string()).unwrap();
        layout
    }

    fn blob(&self, media_type: &str, data: &[u8]) -> Value {
        let digest = ring::digest::digest(&ring::digest::SHA256, data);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(self.0.path().join("blobs/sha256").join(&hex), data).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{hex}"), "size": data.len() })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A tag of it, as `lazyroot image import` takes it.
    pub fn source(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0.path().display())
    }
}

/// Files whose content is their name, long enough to be objects.
pub fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(10_000).collect()
}

/// In name order, so that whiteouts come before what they do not hide, as builders of images write them.
pub fn tar(dir: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(["--sort=name", "-C", dir.to_str().unwrap(), "-c", "."]).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Two layers: the second deletes a file of the first, hides a folder's content and replaces a file.
pub fn two_layers() -> Vec<Vec<u8>> {
    let (below, above) = (temporary(), temporary());
    for name in ["usr/bin/kept", "usr/bin/deleted", "usr/bin/replaced", "etc/hidden/old"] {
        let path = below.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content(name)).unwrap();
    }
    fs::hard_link(below.path().join("usr/bin/kept"), below.path().join("usr/bin/linked")).unwrap();
    fs::set_permissions(below.path().join("usr/bin/kept"), Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir_all(above.path().join("usr/bin")).unwrap();
    fs::create_dir_all(above.path().join("etc/hidden")).unwrap();
    fs::write(above.path().join("usr/bin/.wh.deleted"), "").unwrap();
    fs::write(above.path().join("usr/bin/replaced"), content("replacement")).unwrap();
    fs::write(above.path().join("etc/hidden/.wh..wh..opq"), "").unwrap();
    fs::write(above.path().join("etc/hidden/new"), content("new")).unwrap();
    vec![tar(below.path()), tar(above.path())]
}

/// An image of [`two_layers`] under two tags with different configurations.
pub fn two_layer_image() -> Layout {
    let run = json!({ "Entrypoint": ["/usr/bin/kept"], "Env": ["A=b"], "User": "7:8", "Labels": { "l": "m" } });
    Layout::new(&two_layers(), &[("v1", run), ("v2", json!({ "Cmd": ["sh"] }))])
}

/// Checks an import of [`two_layer_image`].
pub fn assert_two_layers(lazyroot: &Lazyroot, id: &str) {
    let mounted = Mounted::new(&repository(lazyroot), id);
    let bin = mounted.path().join("usr/bin");
    assert_eq!(fs::read(bin.join("kept")).unwrap(), content("usr/bin/kept"));
    assert_eq!(fs::metadata(bin.join("kept")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(bin.join("kept")).unwrap().ino(), fs::metadata(bin.join("linked")).unwrap().ino());
    assert_eq!(fs::read(bin.join("replaced")).unwrap(), content("replacement"));
    assert!(!bin.join("deleted").exists());
    let hidden: Vec<_> =
        fs::read_dir(mounted.path().join("etc/hidden")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(hidden, ["new"]);
}
