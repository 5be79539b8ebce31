//! What an OCI image says about running it.
//!
//! Ours, and not `oci-spec`'s `ImageConfiguration`: that one refuses a document without `rootfs`, and what
//! `store push` writes into a bucket has none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The parts of an [OCI image configuration](https://github.com/opencontainers/image-spec/blob/main/config.md)
/// that matter to a virtual machine. Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageConfig {
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// As Go names it: `linux`.
    pub os: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    pub user: String,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// The program and its first arguments; `cmd` or the user's words follow.
    pub entrypoint: Vec<String>,
    /// Arguments to the entrypoint, or a program and its arguments, unless the user gives others.
    pub cmd: Vec<String>,
    /// Where the program starts; empty for `/`.
    pub working_dir: String,
    /// Free text by name.
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Reads the OCI document.
    ///
    /// # Errors
    /// If it is no JSON or a field is of another type than the specification says.
    pub fn from_oci(document: &[u8]) -> serde_json::Result<Self> {
        let document: Document = serde_json::from_slice(document)?;
        let run = document.config.unwrap_or_default();
        Ok(Self {
            architecture: document.architecture,
            os: document.os,
            user: run.user.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
        })
    }

    /// The OCI document that says the same.
    pub fn to_oci(&self) -> Vec<u8> {
        let document = serde_json::json!({
            "architecture": self.architecture,
            "os": self.os,
            "config": {
                "User": self.user,
                "Env": self.env,
                "Entrypoint": self.entrypoint,
                "Cmd": self.cmd,
                "WorkingDir": self.working_dir,
                "Labels": self.labels,
            },
        });
        document.to_string().into_bytes()
    }
}

/// Builders write `null` as well as nothing for an absent field, hence the options.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<Run>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Run {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_null_fields_are_empty() {
        let config = ImageConfig::from_oci(
            br#"{"architecture":"arm64","os":"linux","rootfs":{},"config":{"Cmd":["sh"],"Entrypoint":null,"Env":["A=b"]}}"#,
        )
        .unwrap();
        let expected = ImageConfig {
            architecture: "arm64".into(),
            os: "linux".into(),
            cmd: vec!["sh".into()],
            env: vec!["A=b".into()],
            ..ImageConfig::default()
        };
        assert_eq!(config, expected);
        assert_eq!(ImageConfig::from_oci(&config.to_oci()).unwrap(), config);
        assert_eq!(ImageConfig::from_oci(b"{}").unwrap(), ImageConfig::default());
        assert!(ImageConfig::from_oci(b"").is_err());
    }
}
