//! The link against a host that is a few lines long.

use super::{Address, FrameReader, Link, LinkError, ObjectRange, REQUEST_DEADLINE};
use crate::threads::start_or_panic;
use lazyroot_proto::frame::ErrorCode;
use lazyroot_proto::frame::{HostMessage, Request};
use lazyroot_proto::reads::Extent;
use lazyroot_proto::verified::Unverified;
use lazyroot_proto::{Algorithm, ObjectId, verity};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

struct Server {
    listener: UnixListener,
    address: Address,
    _dir: tempfile::TempDir,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    Server { listener: UnixListener::bind(&path).unwrap(), address: Address::Unix(path), _dir: dir }
}

fn id(number: u8) -> ObjectId {
    verity::digest(Algorithm::Sha256, &[number])
}

/// Whether that is what was received.
fn is(received: Result<Unverified, LinkError>, bytes: &[u8]) -> bool {
    received.unwrap().verify_object(&verity::digest(Algorithm::Sha256, bytes)).is_ok()
}

impl Server {
    /// Accepts a connection and answers its hello.
    fn accept(&self) -> FrameReader {
        let (stream, _) = self.listener.accept().unwrap();
        let mut reader = FrameReader::new(Arc::new(File::from(OwnedFd::from(stream))));
        let (header, payload) = reader.read_frame().unwrap();
        assert!(matches!(Request::decode(header.kind, &payload), Ok(Request::Hello(_))));
        reply(&reader, 0, &HostMessage::Welcome { manifest_size: 0, index_size: 0, profile_size: 0 });
        reader
    }
}

fn reply(reader: &FrameReader, tag: u64, message: &HostMessage) {
    (&*reader.stream()).write_all(&message.encode(tag)).unwrap();
}

#[test]
fn replies_in_any_order_reach_their_callers() {
    const CALLS: u64 = 8;
    let server = server();
    let address = server.address.clone();
    let host = start_or_panic("host", move || {
        let mut reader = server.accept();
        let requests: Vec<_> = (0..CALLS).map(|_| reader.read_frame().unwrap()).collect();
        for (header, payload) in requests.iter().rev() {
            let Ok(Request::Read { offset, len, .. }) = Request::decode(header.kind, payload) else { panic!() };
            reply(&reader, header.tag, &HostMessage::Data(&vec![offset as u8; len as usize]));
        }
        reader
    });
    let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
    thread::scope(|scope| {
        for offset in 0..CALLS {
            let link = &link;
            scope.spawn(move || assert!(is(link.read(id(1), offset, 100_000), &vec![offset as u8; 100_000])));
        }
    });
    drop(host.join().unwrap());
}

#[test]
fn objects_asked_for_ahead_arrive_and_survive_a_broken_connection() {
    let server = server();
    let address = server.address.clone();
    let host = start_or_panic("host", move || {
        let mut first = server.accept();
        let (header, payload) = first.read_frame().unwrap();
        let many = Request::decode(header.kind, &payload);
        assert!(matches!(many, Ok(Request::ReadList(extents)) if extents.len() == 3));
        reply(&first, header.tag, &HostMessage::Data(b"a"));
        drop(first);
        // The one that was given up and the one that was answered are not asked for again.
        let mut second = server.accept();
        let (header, payload) = second.read_frame().unwrap();
        assert!(matches!(Request::decode(header.kind, &payload), Ok(Request::Read { len: 3, .. })));
        reply(&second, header.tag, &HostMessage::Data(b"ccc"));
        second
    });
    let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
    let range = |position, len| {
        let extent = Extent { position, block: 0, blocks: 1 };
        ObjectRange { extent, id: id(position as u8), offset: 0, len }
    };
    let tickets = link.request_ranges(&[range(1, 1), range(2, 2), range(3, 3)]);
    let [one, two, three] = tickets.try_into().unwrap();
    assert!(is(link.redeem(one), b"a"));
    link.forget(two);
    assert!(is(link.redeem(three), b"ccc"));
    drop(host.join().unwrap());
}

#[test]
fn what_came_together_is_had_without_waiting_for_what_has_not() {
    let server = server();
    let address = server.address.clone();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let host = start_or_panic("host", move || {
        let mut reader = server.accept();
        let tags: Vec<_> = (0..4).map(|_| reader.read_frame().unwrap().0.tag).collect();
        let together = tags[..2].iter().flat_map(|tag| HostMessage::Data(b"x").encode(*tag));
        (&*reader.stream()).write_all(&together.collect::<Vec<_>>()).unwrap();
        may_go_on.recv().unwrap();
        tags[2..].iter().for_each(|tag| reply(&reader, *tag, &HostMessage::Data(b"x")));
        reader
    });
    let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
    let ask = |_| link.request_range(id(1), 0, 1);
    let [one, two, three, four] = [(); 4].map(ask);
    assert!(is(link.redeem(one), b"x"));
    link.dispatch_buffered();
    assert_eq!(link.count_arrived([&two, &three, &four].into_iter()), 1);
    assert_eq!(link.count_arrived([&three, &two].into_iter()), 0, "from the first on");
    assert!(is(link.redeem(two), b"x"));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| link.redeem(three));
        // As often as the reader is in the other's way, whose turn it is to read.
        (0..10_000).for_each(|_| link.dispatch_buffered());
        go_on.send(()).unwrap();
        assert!(is(waiting.join().unwrap(), b"x"));
    });
    assert!(is(link.redeem(four), b"x"));
    drop(host.join().unwrap());
}

#[test]
fn a_broken_connection_is_replaced_and_requests_are_sent_again() {
    let server = server();
    let address = server.address.clone();
    let host = start_or_panic("host", move || {
        let mut first = server.accept();
        first.read_frame().unwrap();
        drop(first);
        let mut second = server.accept();
        let (header, _) = second.read_frame().unwrap();
        reply(&second, header.tag, &HostMessage::Data(b"abcd"));
        second
    });
    let link = Link::connect(address, id(0), REQUEST_DEADLINE).unwrap();
    assert!(is(link.read(id(1), 0, 4), b"abcd"));
    drop(host.join().unwrap());
}

#[test]
fn a_request_gives_up_at_its_deadline_and_a_short_reply_is_an_error() {
    let server = server();
    let address = server.address.clone();
    let host = start_or_panic("host", move || {
        let mut reader = server.accept();
        let (header, _) = reader.read_frame().unwrap();
        reply(&reader, header.tag, &HostMessage::Data(b"abc"));
        reader.read_frame().unwrap();
        // Not answered: hold the connection until the guest has given up and gone.
        let _ = reader.read_frame();
    });
    let link = Link::connect(address, id(0), Duration::from_millis(300)).unwrap();
    assert!(matches!(link.read(id(1), 0, 4), Err(LinkError::Length { requested_len: 4, reply_len: 3 })));
    assert!(matches!(link.read(id(1), 0, 4), Err(LinkError::Deadline(_))));
    drop(link);
    host.join().unwrap();
}

#[test]
fn after_an_outage_of_a_whole_deadline_requests_fail_fast_until_the_host_is_back() {
    const DEADLINE: Duration = Duration::from_secs(1);
    let mut server = server();
    let address = server.address.clone();
    let Address::Unix(path) = &address else { panic!("a unix socket") };
    let link = thread::scope(|scope| {
        let link = scope.spawn(|| Link::connect(address.clone(), id(0), DEADLINE).unwrap());
        drop(server.accept());
        link.join().unwrap()
    });
    // From here on nobody accepts.
    std::fs::remove_file(path).unwrap();
    let wait = |link: &Link| {
        let started = Instant::now();
        assert!(matches!(link.read(id(1), 0, 4), Err(LinkError::Deadline(_))));
        started.elapsed()
    };
    assert!(wait(&link) > DEADLINE / 2, "the first request waits for the host");
    assert!(wait(&link) < DEADLINE / 2, "the next does not");
    assert!(wait(&link) < DEADLINE / 2, "nor the one after");

    server.listener = UnixListener::bind(path).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = server.accept();
            let (header, _) = reader.read_frame().unwrap();
            reply(&reader, header.tag, &HostMessage::Data(b"abcd"));
        });
        assert!(is(link.read(id(1), 0, 4), b"abcd"));
    });
    std::fs::remove_file(path).unwrap();
    assert!(wait(&link) > DEADLINE / 2, "a new outage is waited for again");
}

#[test]
fn a_host_that_refuses_is_not_asked_again() {
    let server = server();
    let address = server.address.clone();
    let host = start_or_panic("host", move || {
        let (stream, _) = server.listener.accept().unwrap();
        let mut reader = FrameReader::new(Arc::new(File::from(OwnedFd::from(stream))));
        reader.read_frame().unwrap();
        reply(&reader, 0, &HostMessage::Error { code: ErrorCode::Refused, message: "no such image".into() });
    });
    let refused = Link::connect(address, id(0), REQUEST_DEADLINE);
    assert!(matches!(refused, Err(LinkError::Host { code: ErrorCode::Refused, .. })));
    host.join().unwrap();
}
