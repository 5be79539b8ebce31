//! What the host sends.

use super::fields::{Reader, Writer};
use super::header::{FrameError, VERSION};
use super::kind;

/// Why a request failed; the numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The session may not read this, or the image is not here.
    Refused,
    /// The object is damaged or cannot be read.
    Unavailable,
    /// The request makes no sense (a range outside the object).
    Invalid,
}

impl ErrorCode {
    const ALL: [ErrorCode; 3] = [ErrorCode::Refused, ErrorCode::Unavailable, ErrorCode::Invalid];
}

/// What the host sends on data and control connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage<'a> {
    /// The answer to a hello.
    Welcome {
        /// Size of the EROFS manifest in bytes (0 unless the role is data).
        manifest_size: u64,
        /// Size of the object index in bytes (0 unless the role is data).
        index_size: u64,
        /// Size of the boot profile in bytes (0 if there is none).
        profile_size: u64,
    },
    /// What a read asked for, all of it.
    Data(&'a [u8]),
    /// The request failed.
    Error {
        /// Which kind of failure.
        code: ErrorCode,
        /// One line for people; names the object.
        message: String,
    },
    /// The answer to a ping.
    Pong,
    /// On a control connection: open a stream with this number.
    OpenStream(u64),
    /// On a control connection: shut down, sync and power off.
    PowerOff,
    /// On a settings connection: the guest's settings.
    Settings(&'a [u8]),
}

impl<'a> HostMessage<'a> {
    /// The whole frame, header included.
    pub fn encode(&self, tag: u64) -> Vec<u8> {
        let out = Writer::default();
        match self {
            HostMessage::Welcome { manifest_size, index_size, profile_size } => {
                out.u16(VERSION).u64(*manifest_size).u64(*index_size).u64(*profile_size).frame(kind::WELCOME, tag)
            }
            HostMessage::Data(data) => out.bytes(data).frame(kind::DATA, tag),
            HostMessage::Error { code, message } => {
                out.u8(*code as u8).bytes(message.as_bytes()).frame(kind::ERROR, tag)
            }
            HostMessage::Pong => out.frame(kind::PONG, tag),
            HostMessage::OpenStream(number) => out.u64(*number).frame(kind::OPEN_STREAM, tag),
            HostMessage::PowerOff => out.frame(kind::POWER_OFF, tag),
            HostMessage::Settings(settings) => out.bytes(settings).frame(kind::SETTINGS, tag),
        }
    }

    /// Parses a payload that came with a header of `kind`.
    ///
    /// # Errors
    /// If the kind is not the host's or the payload is not exactly of its form.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Reader::new(kind, payload);
        let message = match kind {
            kind::WELCOME => {
                match fields.u16()? {
                    VERSION => (),
                    other => return Err(FrameError::Version(other)),
                }
                HostMessage::Welcome {
                    manifest_size: fields.u64()?,
                    index_size: fields.u64()?,
                    profile_size: fields.u64()?,
                }
            }
            kind::DATA => HostMessage::Data(fields.rest()),
            kind::ERROR => {
                let code = *ErrorCode::ALL.get(fields.u8()? as usize).ok_or(fields.malformed())?;
                HostMessage::Error { code, message: fields.text() }
            }
            kind::PONG => HostMessage::Pong,
            kind::OPEN_STREAM => HostMessage::OpenStream(fields.u64()?),
            kind::POWER_OFF => HostMessage::PowerOff,
            kind::SETTINGS => HostMessage::Settings(fields.rest()),
            other => return Err(FrameError::UnknownKind(other)),
        };
        fields.end(message)
    }
}
