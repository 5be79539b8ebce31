//! What the host hands a guest before the image's init starts, as data and not as words of the kernel command line,
//! which every program can read.

use crate::frame::fields::{Reader, Writer};
use crate::frame::header::{FrameError, MAX_PAYLOAD};
use crate::frame::kind;

/// The most bytes of all settings together: one frame.
pub const MAX_SETTINGS: usize = MAX_PAYLOAD;

/// Files: name and content of each.
pub type Files = Vec<(Vec<u8>, Vec<u8>)>;

/// A guest's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// systemd credentials: name and content.
    pub credentials: Files,
    /// systemd units: file name and content.
    pub units: Files,
    /// The network, if the guest has one.
    pub network: Option<Network>,
    /// Folders of the host.
    pub shares: Vec<Share>,
}

/// What the guest's first network interface is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// Bits of its network, at most 32.
    pub prefix: u8,
    /// Where all other addresses are reached.
    pub gateway: [u8; 4],
    /// Who answers DNS.
    pub dns: [u8; 4],
}

/// A folder of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The virtiofs device's tag.
    pub tag: Vec<u8>,
    /// Where it is mounted in the guest: an absolute path.
    pub path: Vec<u8>,
    /// Whether it can be changed.
    pub read_only: bool,
}

fn files(mut out: Writer, files: &[(Vec<u8>, Vec<u8>)]) -> Writer {
    out = out.u32(files.len() as u32);
    for (name, content) in files {
        out = out.string(name).string(content);
    }
    out
}

fn read_files(fields: &mut Reader) -> Result<Files, FrameError> {
    let count = fields.u32()?;
    // Grows as files are really found, so that a lying count costs nothing.
    (0..count).map(|_| Ok((fields.string()?, fields.string()?))).collect()
}

impl Settings {
    /// The payload; it fits a frame if it is no longer than [`MAX_SETTINGS`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = files(files(Writer::default(), &self.credentials), &self.units);
        out = match &self.network {
            None => out.u8(0),
            Some(net) => out.u8(1).bytes(&net.address).u8(net.prefix).bytes(&net.gateway).bytes(&net.dns),
        };
        out = out.u32(self.shares.len() as u32);
        for share in &self.shares {
            out = out.string(&share.tag).string(&share.path).u8(share.read_only.into());
        }
        out.0
    }

    /// Parses a payload.
    ///
    /// # Errors
    /// If it is not exactly of this form.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind::SETTINGS, payload);
        let credentials = read_files(&mut fields)?;
        let units = read_files(&mut fields)?;
        let network = match fields.u8()? {
            0 => None,
            1 => {
                let address = fields.array()?;
                let prefix = fields.u8()?;
                if prefix > 32 {
                    return Err(fields.malformed());
                }
                Some(Network { address, prefix, gateway: fields.array()?, dns: fields.array()? })
            }
            _ => return Err(fields.malformed()),
        };
        let count = fields.u32()?;
        let mut share = || {
            let (tag, path) = (fields.string()?, fields.string()?);
            match fields.u8()? {
                read_only @ (0 | 1) => Ok(Share { tag, path, read_only: read_only == 1 }),
                _ => Err(fields.malformed()),
            }
        };
        let shares = (0..count).map(|_| share()).collect::<Result<_, _>>()?;
        fields.end(Self { credentials, units, network, shares })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn settings_round_trip() {
        let full = Settings {
            credentials: vec![(b"a".to_vec(), b"\x00\xff".to_vec())],
            units: vec![(b"x.service".to_vec(), b"[Service]".to_vec()), (vec![], vec![])],
            network: Some(Network { address: [10, 0, 2, 15], prefix: 24, gateway: [10, 0, 2, 2], dns: [10, 0, 2, 3] }),
            shares: vec![Share { tag: b"v0".to_vec(), path: b"/mnt".to_vec(), read_only: true }],
        };
        for settings in [full, Settings::default()] {
            assert_eq!(Settings::decode(&settings.encode()), Ok(settings));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(settings) = Settings::decode(&payload) {
                prop_assert_eq!(settings.encode(), payload);
            }
        }
    }
}
