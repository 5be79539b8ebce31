//! Object ids: the fs-verity digest of an object, as composefs names it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// The hash of a composefs repository; every object id in it uses the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 32-byte digests.
    Sha256,
    /// SHA-512, 64-byte digests.
    Sha512,
}

impl Algorithm {
    /// Length of a digest in bytes: 32 or 64.
    pub const fn digest_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// The number fs-verity (`FS_VERITY_HASH_ALG_*` in `linux/fsverity.h`) and our wire use.
    pub const fn number(self) -> u8 {
        match self {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        }
    }

    /// The inverse of [`Algorithm::number`].
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Algorithm::Sha256),
            2 => Some(Algorithm::Sha512),
            _ => None,
        }
    }

    /// `sha256` or `sha512`.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// The fs-verity digest of an object: its name in the repository and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectId {
    algorithm: Algorithm,
    /// Digest, zero-padded to the longest one so that the type stays `Copy`.
    bytes: [u8; 64],
}

/// A text or byte string that is no object id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an object id: expected 64 (sha256) or 128 (sha512) hex digits, optionally after 'sha256:' or 'sha512:'")]
pub struct ParseIdError;

impl Hash for ObjectId {
    /// Of a part of the digest: to find two with the same 16 bytes is out of anybody's reach.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.bytes[..16]);
    }
}

impl ObjectId {
    /// An id from a raw digest; `None` if `digest` is not exactly as long as `algorithm` says.
    pub fn new(algorithm: Algorithm, digest: &[u8]) -> Option<Self> {
        if digest.len() != algorithm.digest_len() {
            return None;
        }
        let mut bytes = [0; 64];
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Self { algorithm, bytes })
    }

    /// The hash that made this id.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest: 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_len()]
    }

    /// Lower-case hex of the digest: 64 or 128 characters.
    pub fn to_hex(&self) -> String {
        use fmt::Write;
        let mut hex = String::with_capacity(2 * self.algorithm.digest_len());
        for byte in self.as_bytes() {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        }
        hex
    }

    /// Where a composefs repository keeps the object, relative to `objects/`: `ab/cdef...`.
    pub fn object_path(&self) -> String {
        let mut path = self.to_hex();
        path.insert(2, '/');
        path
    }

    /// Parses the two path components of [`ObjectId::object_path`]: the directory's byte and the file name.
    pub fn from_object_path(dir: u8, name: &[u8]) -> Option<Self> {
        let mut digest = [0; 64];
        let len = name.len() / 2 + 1;
        if !name.len().is_multiple_of(2) || !matches!(len, 32 | 64) {
            return None;
        }
        digest[0] = dir;
        for (byte, pair) in digest[1..].iter_mut().zip(name.chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        let algorithm = if len == 32 { Algorithm::Sha256 } else { Algorithm::Sha512 };
        Self::new(algorithm, &digest[..len])
    }
}

/// The value of one lower-case hex digit, as composefs writes them.
fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for ObjectId {
    /// `sha256:<hex>`, the form on the kernel command line and in listings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.to_hex())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectId {
    type Err = ParseIdError;

    /// Accepts `sha256:<hex>`, `sha512:<hex>` and bare hex, whose length then tells the algorithm.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let (name, hex) = match text.split_once(':') {
            Some((name, hex)) => (Some(name), hex),
            None => (None, text),
        };
        let hex = hex.as_bytes();
        if hex.len() < 2 {
            return Err(ParseIdError);
        }
        let dir = hex_digit(hex[0]).zip(hex_digit(hex[1])).ok_or(ParseIdError)?;
        let id = Self::from_object_path(dir.0 << 4 | dir.1, &hex[2..]).ok_or(ParseIdError)?;
        match name {
            Some(name) if name != id.algorithm.name() => Err(ParseIdError),
            _ => Ok(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_paths_round_trip() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest: Vec<u8> = (0..algorithm.digest_len() as u8).map(|i| i.wrapping_mul(37)).collect();
            let id = ObjectId::new(algorithm, &digest).unwrap();
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.to_hex().parse(), Ok(id));
            let path = id.object_path();
            assert_eq!(ObjectId::from_object_path(digest[0], &path.as_bytes()[3..]), Some(id));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "0", "sha256:", "sha256:00", "sha512:00", &"g".repeat(64), &"A".repeat(64), &"0".repeat(66)] {
            assert_eq!(text.parse::<ObjectId>(), Err(ParseIdError), "{text}");
        }
        let sha256 = format!("sha512:{}", "0".repeat(64));
        assert_eq!(sha256.parse::<ObjectId>(), Err(ParseIdError));
    }
}
