//! Promises about `lazyroot serve`, to guests that behave and to those that do not, on real sockets.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lazyroot_proto::frame::{DEFAULT_PORT, ErrorCode, Header, Hello, HostMessage, MAX_READ, Request, Role, kind};
use lazyroot_proto::{Algorithm, ObjectId, verity};
use lazyroot_tests::frames::next;
use lazyroot_tests::lazyroot::{Lazyroot, Server};

/// Longer than any answer takes, shorter than the server's patience with a guest that does not read.
const PATIENCE: Duration = Duration::from_secs(10);

/// A store with one image of one large file: the image's id and the file's.
fn store() -> (Lazyroot, ObjectId, ObjectId) {
    let (lazyroot, source) = (Lazyroot::default(), tempfile::tempdir().unwrap());
    let content = vec![7; 3 << 20];
    fs::write(source.path().join("large"), &content).unwrap();
    lazyroot.import(source.path(), "large");
    let list: serde_json::Value = serde_json::from_str(&lazyroot.ok(["image", "ls", "--format", "json"])).unwrap();
    let image = list[0]["id"].as_str().unwrap().parse().unwrap();
    (lazyroot, image, verity::digest(Algorithm::Sha256, &content))
}

fn connect(server: &Server, role: Role) -> UnixStream {
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&Request::Hello(Hello { role }).encode(0)).unwrap();
    stream
}

fn assert_answers(stream: &mut UnixStream, object: ObjectId) {
    stream.write_all(&Request::Read { id: object, offset: 0, len: 4096 }.encode(1)).unwrap();
    stream.write_all(&Request::Nodes { id: object, level: 0, offset: 0, len: 32 }.encode(2)).unwrap();
    let mut tags: Vec<u64> = (0..2).map(|_| next(stream).expect("an answer").0.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, [1, 2]);
}

#[test]
fn guests_that_do_not_read_hold_up_nobody() {
    let (lazyroot, image, object) = store();
    let server = lazyroot.serve();
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = connect(&server, Role::Data(image));
        // As many as the socket takes: the server stops reading from this guest at some point.
        stream.set_nonblocking(true).unwrap();
        for tag in 0..300 {
            let request = match tag % 2 {
                0 => Request::Read { id: object, offset: 0, len: MAX_READ },
                _ => Request::Nodes { id: object, level: 0, offset: 0, len: 64 },
            };
            if stream.write(&request.encode(tag)).is_err() {
                break;
            }
        }
        stalled.push(stream);
    }
    let mut honest = connect(&server, Role::Data(image));
    assert!(next(&mut honest).is_ok(), "a welcome");
    assert_answers(&mut honest, object);
}

/// What it would say goes nowhere: that must not keep it from answering.
#[test]
fn a_server_that_nobody_hears_answers_all_the_same() {
    let (lazyroot, image, object) = store();
    let file = lazyroot.home().join("repository/objects").join(object.object_path());
    fs::File::options().write(true).open(file).unwrap().set_len(1 << 20).unwrap();
    let server = lazyroot.serve_unheard();
    let mut guest = connect(&server, Role::Data(image));
    assert!(next(&mut guest).is_ok(), "a welcome");
    for (offset, answer) in [(2 << 20, kind::ERROR), (0, kind::DATA)] {
        guest.write_all(&Request::Read { id: object, offset, len: 4096 }.encode(1)).unwrap();
        assert_eq!(next(&mut guest).expect("an answer").0.kind, answer);
    }
}

#[test]
fn strangers_and_foreign_requests_are_refused() {
    let (lazyroot, image, object) = store();
    let server = lazyroot.serve();
    let refused = |stream: &mut UnixStream| {
        let (header, payload) = next(stream).unwrap();
        match HostMessage::decode(header.kind, &payload).unwrap() {
            HostMessage::Error { code, .. } => code,
            other => panic!("{other:?}"),
        }
    };
    let other = verity::digest(Algorithm::Sha256, b"another image");
    assert_eq!(refused(&mut connect(&server, Role::Data(other))), ErrorCode::Refused);
    assert_eq!(refused(&mut connect(&server, Role::Control)), ErrorCode::Refused);

    let mut session = connect(&server, Role::Data(image));
    next(&mut session).unwrap();
    session.write_all(&Request::Read { id: other, offset: 0, len: 1 }.encode(1)).unwrap();
    assert_eq!(refused(&mut session), ErrorCode::Refused, "an object of no image of ours");
    session.write_all(&Request::Read { id: object, offset: 3 << 20, len: 1 }.encode(2)).unwrap();
    assert_eq!(refused(&mut session), ErrorCode::Invalid, "a range outside of the object");
    assert_answers(&mut session, object);

    // A frame longer than any request ends the connection; so does one of no known kind.
    for (len, kind) in [(1 << 20, 3), (0, 0x7f)] {
        let mut session = connect(&server, Role::Data(image));
        next(&mut session).unwrap();
        session.write_all(&Header { len, kind, tag: 0 }.encode()).unwrap();
        assert!(next(&mut session).is_err());
    }
    assert_answers(&mut session, object);
}

#[test]
fn hybrid_sockets_are_named_as_firecracker_does() {
    let (lazyroot, image, object) = store();
    let base = lazyroot.home().join("v");
    let endpoint = format!("hybrid:{}", base.display());
    let server = lazyroot.serve_at(&endpoint, lazyroot.home().join(format!("v_{DEFAULT_PORT}")));
    let mut session = connect(&server, Role::Data(image));
    next(&mut session).unwrap();
    assert_answers(&mut session, object);
}
