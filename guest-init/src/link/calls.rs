//! Requests that wait for their reply: under which tag, on behalf of which thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::thread::{self, Thread};

use lazyroot_proto::frame::Request;

use crate::link::error::LinkError;

/// A reply's payload, not verified, or why there is none.
pub type Reply = Result<Vec<u8>, LinkError>;

/// Stands for a reply that has not been fetched from the link yet.
#[derive(Debug)]
pub struct Ticket {
    pub(super) tag: u64,
    /// How many bytes the reply has.
    pub(super) len: u32,
}

/// All requests that wait, by tag.
#[derive(Default)]
pub struct Calls {
    last_tag: u64,
    pending: HashMap<u64, Call>,
}

struct Call {
    /// The whole request frame, kept for replay.
    frame: Vec<u8>,
    /// Who waits for the reply; nobody yet for one that was asked for ahead of need.
    caller: Option<Thread>,
    reply: Option<Reply>,
}

impl Calls {
    /// Adds a request; returns its tag and its frame.
    pub fn add(&mut self, request: &Request) -> (u64, Vec<u8>) {
        self.last_tag += 1;
        let frame = request.encode(self.last_tag);
        self.pending.insert(self.last_tag, Call { frame: frame.clone(), caller: None, reply: None });
        (self.last_tag, frame)
    }

    /// Adds requests that are sent together, under tags that follow one another; returns the first tag.
    pub fn add_all(&mut self, requests: impl Iterator<Item = Request>) -> u64 {
        let first_tag = self.last_tag + 1;
        for request in requests {
            self.last_tag += 1;
            // On a new connection each is asked for on its own: some may have been answered.
            let frame = request.encode(self.last_tag);
            self.pending.insert(self.last_tag, Call { frame, caller: None, reply: None });
        }
        first_tag
    }

    /// Takes the reply to a request away, if it has arrived, and the request with it. Else the calling thread becomes its
    /// caller.
    pub fn redeem(&mut self, tag: u64) -> Option<Reply> {
        match self.pending.entry(tag) {
            Entry::Occupied(call) if call.get().reply.is_some() => call.remove().reply,
            Entry::Occupied(mut call) => {
                call.get_mut().caller = Some(thread::current());
                None
            }
            Entry::Vacant(_) => None,
        }
    }

    /// Takes the reply to a request away, if it has arrived.
    pub fn take_reply(&mut self, tag: u64) -> Option<Reply> {
        self.pending.get_mut(&tag)?.reply.take()
    }

    /// Whether the reply to a request has arrived.
    pub fn has_reply(&self, tag: u64) -> bool {
        self.pending.get(&tag).is_some_and(|call| call.reply.is_some())
    }

    /// Files a reply and wakes its caller. Without such a call nothing happens: its deadline has passed, or it was answered
    /// on the connection before.
    pub fn resolve(&mut self, tag: u64, reply: Reply) {
        if let Some(call) = self.pending.get_mut(&tag) {
            call.reply = Some(reply);
            if let Some(caller) = &call.caller {
                caller.unpark();
            }
        }
    }

    /// Forgets a request.
    pub fn remove(&mut self, tag: u64) {
        self.pending.remove(&tag);
    }

    /// A thread that waits for a reply which has not arrived.
    pub fn any_caller(&self) -> Option<Thread> {
        self.pending.values().find_map(|call| call.caller.clone().filter(|_| call.reply.is_none()))
    }

    /// The frames of all requests that have no reply.
    pub fn unanswered_frames(&self) -> impl Iterator<Item = &[u8]> {
        self.pending.values().filter(|call| call.reply.is_none()).map(|call| &*call.frame)
    }
}
