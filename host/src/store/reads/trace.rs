//! Traces: what one run read of an image, when, and how long it waited. The last run's is kept, so that it can be
//! looked at when its VM is gone.

use std::io;

use anyhow::{Context, Result};
use lazyroot_proto::ObjectId;
use lazyroot_proto::reads::{Extent, Origin, Read};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::store::files::Files;

/// Version of the file.
const VERSION: u32 = 1;

/// Level of compression: zstd's own choice, which makes a fifth of a trace in a few milliseconds.
const LEVEL: i32 = zstd::DEFAULT_COMPRESSION_LEVEL;

/// The longest trace, uncompressed, in bytes: several times what a session keeps.
const LONGEST: usize = 8 << 20;

/// What a run read, and what it said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The image's digest.
    pub image: String,
    /// When the session began, in seconds since 1970.
    pub since: u64,
    /// What the guest said of itself.
    pub milestones: Vec<Milestone>,
    /// What was read, as it was told.
    #[serde(serialize_with = "write_reads", deserialize_with = "read_reads")]
    pub reads: Vec<Read>,
    /// Reads that are not here: there were too many.
    pub more_reads: u64,
}

/// A moment of a guest's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    /// `init`, `mounted`, `started`, `ready`, `warning` or `fatal`.
    pub name: String,
    /// When, in microseconds since the guest's kernel started.
    pub at: u64,
    /// For people; may be empty.
    pub text: String,
}

impl Trace {
    /// A trace of the image with this digest, without reads yet; `since` is in seconds since 1970.
    pub fn new(image: &ObjectId, since: u64) -> Self {
        Self { image: image.to_string(), since, ..Self::default() }
    }

    /// Its bytes, compressed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(&(VERSION, self)).expect("numbers and texts are JSON");
        zstd::bulk::compress(&json, LEVEL).expect("memory can be compressed")
    }

    /// Reads what [`Trace::to_bytes`] made; `None` if it is damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, trace): (u32, Self) =
            serde_json::from_slice(&zstd::bulk::decompress(bytes, LONGEST).ok()?).ok()?;
        (version == VERSION).then_some(trace)
    }
}

/// A read is six numbers: position, first block, blocks, when, how long, and where from (in the order of
/// [`Origin::ALL`]).
type Numbers = (u32, u32, u32, u64, u32, u8);

fn write_reads<S: Serializer>(reads: &[Read], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(reads.iter().map(|read| -> Numbers {
        let Extent { position, block, blocks } = read.extent;
        (position, block, blocks, read.at, read.waited, read.origin as u8)
    }))
}

fn read_reads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Read>, D::Error> {
    let numbers = Vec::<Numbers>::deserialize(deserializer)?;
    let read = |(position, block, blocks, at, waited, origin): Numbers| {
        let origin = *Origin::ALL.get(usize::from(origin))?;
        Some(Read { extent: Extent { position, block, blocks }, at, waited, origin })
    };
    numbers
        .into_iter()
        .map(|numbers| read(numbers).ok_or_else(|| serde::de::Error::custom("an unknown origin")))
        .collect()
}

/// The trace of the last run of one image, kept beside its repository.
#[derive(Clone, Debug)]
pub struct TraceFile {
    files: Files,
    name: String,
}

impl TraceFile {
    pub(in crate::store) fn new(files: Files, image: &ObjectId) -> Self {
        Self { files, name: format!("traces/{}", image.to_hex()) }
    }

    /// The trace; `None` if none was kept.
    ///
    /// # Errors
    /// If there is one that cannot be read, is damaged or of another version.
    pub fn read(&self) -> Result<Option<Trace>> {
        let shown = self.files.path(&self.name);
        match self.files.read(&self.name) {
            Ok(bytes) => {
                let trace = Trace::from_bytes(&bytes);
                trace.map(Some).with_context(|| format!("the trace {} is damaged: remove it", shown.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", shown.display())),
        }
    }

    /// Replaces the trace.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, trace: &Trace) -> Result<()> {
        let path = self.files.path(&self.name);
        self.files.write(&self.name, &trace.to_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use lazyroot_proto::{Algorithm, verity};

    use super::*;

    #[test]
    fn the_last_trace_is_kept_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let id = verity::digest(Algorithm::Sha256, b"image");
        let file = TraceFile::new(Files::new(dir.path()), &id);
        assert_eq!(file.read().unwrap(), None);
        let extent = Extent { position: 1, block: 2, blocks: 3 };
        let mut trace = Trace::new(&id, 7);
        trace.reads = Origin::ALL.map(|origin| Read { extent, at: 1 << 40, waited: 5, origin }).to_vec();
        trace.milestones = vec![Milestone { name: "init".into(), at: 4, text: String::new() }];
        file.write(&trace).unwrap();
        assert_eq!(file.read().unwrap(), Some(trace));
        Files::new(dir.path()).write(&file.name, b"no trace").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("is damaged"));
    }
}
