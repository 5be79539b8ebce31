//! A session with another lazyroot, which reads through this one: every image that is served here, and those that it
//! asks us to import.

use std::sync::Arc;

use lazyroot_proto::frame::{ErrorCode, HostMessage};
use lazyroot_proto::peer::{Packing, PeerRange, PeerReply, PeerRequest};
use lazyroot_proto::verity;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::serve::images::{Catalog, ServedImage};
use crate::serve::record::Totals;
use crate::serve::wire::channel;
use crate::serve::wire::stream::BoxStream;
use crate::store::{Object, ObjectError};

/// Requests of one session under way at a time; the next one waits for a place.
const PLACES: usize = 256;

/// Of those, how many may hold their answer in memory: 32 MiB at most.
const ANSWERS: usize = 32;

/// Shorter answers are not worth packing.
const WORTH_PACKING: usize = 1 << 10;

/// zstd's fastest ordinary level: a higher one saves a tenth more and takes twice as long.
const LEVEL: i32 = 1;

/// The longest configuration that is sent along with an image, in bytes: a frame holds no more.
const MAX_CONFIG: usize = 512 << 10;

type Failure = (ErrorCode, String);

/// Serves one stream to its end.
pub(in crate::serve) async fn run(catalog: &Arc<Catalog>, totals: &Arc<Totals>, stream: BoxStream) {
    let (mut requests, outbox) = channel::split(stream);
    let (places, answers) = (Arc::new(Semaphore::new(PLACES)), Arc::new(Semaphore::new(ANSWERS)));
    let mut packing = Packing::None;
    let mut under_way = JoinSet::new();
    let welcome = HostMessage::Welcome { manifest_size: 0, index_size: 0, profile_size: 0 };
    if outbox.send(&welcome.encode(0)).await.is_err() {
        return;
    }
    while let Some((tag, request)) = requests.next(PeerRequest::decode, &"with another lazyroot").await {
        match request {
            PeerRequest::Ping => {
                let _ = outbox.send(&HostMessage::Pong.encode(tag)).await;
                continue;
            }
            PeerRequest::Packing(wanted) => {
                packing = wanted;
                continue;
            }
            _ => (),
        }
        while under_way.try_join_next().is_some() {}
        let place = places.clone().acquire_owned().await.expect("never closed");
        let (outbox, answers, catalog) = (outbox.clone(), answers.clone(), catalog.clone());
        let totals = totals.clone();
        under_way.spawn(async move {
            let answering = match request {
                // May take as long as an import, and its answer is short.
                PeerRequest::Resolve(_) => None,
                _ => Some(answers.acquire_owned().await.expect("never closed")),
            };
            let answer = tokio::task::spawn_blocking(move || {
                let object = object(&request);
                (object, answer(&catalog, &request, packing, tag))
            });
            let frame = match answer.await {
                Ok((object, Ok((len, frame)))) => {
                    totals.count_reply(object, len);
                    frame
                }
                Ok((_, Err((code, message)))) => {
                    totals.count_failure();
                    tracing::warn!("{message}");
                    HostMessage::Error { code, message }.encode(tag)
                }
                Err(_) => {
                    let message = "the server failed".to_owned();
                    HostMessage::Error { code: ErrorCode::Unavailable, message }.encode(tag)
                }
            };
            let _ = outbox.send(&frame).await;
            drop((place, answering));
        });
    }
}

/// The object that a request is about.
fn object(request: &PeerRequest) -> Option<lazyroot_proto::ObjectId> {
    match request {
        PeerRequest::Object(range) | PeerRequest::Leaves(range) => Some(range.id),
        _ => None,
    }
}

/// The answer's length before it was packed, and its frame. May block.
fn answer(catalog: &Catalog, request: &PeerRequest, packing: Packing, tag: u64) -> Result<(u32, Vec<u8>), Failure> {
    let data = match request {
        PeerRequest::Resolve(reference) => return resolve(catalog, reference).map(|reply| (0, reply.encode(tag))),
        PeerRequest::Manifest { id, offset, len } => {
            let image = catalog.get(id).ok_or_else(|| (ErrorCode::Refused, format!("no image {id} here")))?;
            if offset.checked_add(u64::from(*len)).is_none_or(|end| end > image.manifest_size) {
                return Err((ErrorCode::Invalid, format!("{len} bytes at {offset} lie outside of the manifest")));
            }
            let mut data = vec![0; *len as usize];
            let read = image.read_manifest(*offset, &mut data);
            read.map_err(|error| (ErrorCode::Unavailable, format!("cannot read the manifest of {id}: {error}")))?;
            data
        }
        PeerRequest::Object(range) => read_object(catalog, range)?,
        PeerRequest::Leaves(range) => read_leaves(catalog, range)?,
        PeerRequest::Ping | PeerRequest::Packing(_) => unreachable!("answered before"),
    };
    let len = data.len() as u32;
    if packing == Packing::Zstd && data.len() >= WORTH_PACKING {
        match zstd::bulk::compress(&data, LEVEL) {
            // An eighth less is worth unpacking it.
            Ok(packed) if packed.len() <= data.len() / 8 * 7 => {
                return Ok((len, PeerReply::Packed { len, data: &packed }.encode(tag)));
            }
            Ok(_) => (),
            Err(error) => tracing::debug!("not packed: {error}"),
        }
    }
    Ok((len, HostMessage::Data(&data).encode(tag)))
}

fn resolve(catalog: &Catalog, reference: &str) -> Result<ImageReply, Failure> {
    let found = catalog.find(reference).map_err(|error| (ErrorCode::Unavailable, format!("{error:#}")))?;
    let image = found.ok_or_else(|| (ErrorCode::Refused, format!("no image '{reference}' here")))?;
    let config = image.config.as_ref().map(|config| config.to_oci()).unwrap_or_default();
    let config = if config.len() <= MAX_CONFIG { config } else { Vec::new() };
    Ok(ImageReply { image, config })
}

/// What an IMAGE frame is made of.
struct ImageReply {
    image: Arc<ServedImage>,
    config: Vec<u8>,
}

impl ImageReply {
    fn encode(&self, tag: u64) -> Vec<u8> {
        let name = self.image.name.clone().unwrap_or_default();
        let (id, manifest_size) = (self.image.id, self.image.manifest_size);
        PeerReply::Image { id, manifest_size, name, config: &self.config }.encode(tag)
    }
}

/// Whether a range lies inside of `size` bytes.
fn check(range: &PeerRange, size: u64) -> Result<(), Failure> {
    match range.offset.checked_add(range.len.into()) {
        Some(end) if end <= size => Ok(()),
        _ => {
            let why = format!("{} bytes at {} lie outside of the {size} of {}", range.len, range.offset, range.id);
            Err((ErrorCode::Invalid, why))
        }
    }
}

fn failure(error: &ObjectError) -> Failure {
    let code = match error {
        ObjectError::NotFound(_) => ErrorCode::Refused,
        _ => ErrorCode::Unavailable,
    };
    (code, error.to_string())
}

fn read_object(catalog: &Catalog, range: &PeerRange) -> Result<Vec<u8>, Failure> {
    check(range, range.size)?;
    let source = catalog.source_of(&range.id).ok_or_else(|| failure(&ObjectError::NotFound(range.id)))?;
    let mut data = vec![0; range.len as usize];
    let object = Object { id: range.id, size: range.size };
    if !source.read_cached(&object, range.offset, &mut data) {
        source.read(&object, range.offset, &mut data).map_err(|error| failure(&error))?;
    }
    Ok(data)
}

fn read_leaves(catalog: &Catalog, range: &PeerRange) -> Result<Vec<u8>, Failure> {
    check(range, verity::leaves_len(range.id.algorithm(), range.size))?;
    let source = catalog.source_of(&range.id).ok_or_else(|| failure(&ObjectError::NotFound(range.id)))?;
    let leaves = source.leaves(&Object { id: range.id, size: range.size }).map_err(|error| failure(&error))?;
    // The object may be of another size than the other end thinks.
    let end = range.offset as usize + range.len as usize;
    let piece = leaves.get(range.offset as usize..end);
    piece.map(<[u8]>::to_vec).ok_or_else(|| (ErrorCode::Invalid, format!("object {} is shorter", range.id)))
}
