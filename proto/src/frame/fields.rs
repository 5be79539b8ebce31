//! Fields of a payload: written and read one after the other, little-endian.

use super::header::{FrameError, Header, MAX_READ};
use crate::{Algorithm, ObjectId};

/// Appends fields, little-endian.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    pub(crate) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
    /// Bytes behind their number.
    pub(crate) fn string(self, bytes: &[u8]) -> Self {
        self.u32(bytes.len() as u32).bytes(bytes)
    }
    pub(crate) fn id(self, id: &ObjectId) -> Self {
        self.u8(id.algorithm().number()).bytes(id.as_bytes())
    }
    /// The whole frame: header and what was written.
    pub(crate) fn frame(self, kind: u8, tag: u64) -> Vec<u8> {
        let header = Header { len: self.0.len() as u32, kind, tag };
        [&header.encode()[..], &self.0].concat()
    }
}

/// Takes fields off a payload; any shortage makes the frame malformed.
pub(crate) struct Reader<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(kind: u8, payload: &'a [u8]) -> Self {
        Self { kind, rest: payload }
    }
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        Ok(self.bytes(N)?.try_into().expect("N bytes were taken"))
    }
    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn id(&mut self) -> Result<ObjectId, FrameError> {
        let algorithm = Algorithm::from_number(self.u8()?).ok_or(self.malformed())?;
        let digest = self.bytes(algorithm.digest_len())?;
        Ok(ObjectId::new(algorithm, digest).expect("the digest's length was taken from the algorithm"))
    }
    /// What [`Writer::string`] wrote.
    pub(crate) fn string(&mut self) -> Result<Vec<u8>, FrameError> {
        let len = self.u32()? as usize;
        Ok(self.bytes(len)?.to_vec())
    }
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.rest()).into_owned()
    }
    /// A length in 1..=[`MAX_READ`].
    pub(crate) fn read_len(&mut self) -> Result<u32, FrameError> {
        match self.u32()? {
            len @ 1..=MAX_READ => Ok(len),
            _ => Err(self.malformed()),
        }
    }
    pub(crate) fn malformed(&self) -> FrameError {
        FrameError::Malformed(self.kind)
    }
    /// `value`, if the payload was used up.
    pub(crate) fn end<T>(self, value: T) -> Result<T, FrameError> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.malformed()) }
    }
}
