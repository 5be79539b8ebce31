//! Frame kinds, by number. Requests are below 0x80, replies from 0x80, streams from 0xa0.
#![allow(missing_docs, reason = "named as the messages they carry")]

pub const HELLO: u8 = 0x01;
pub const GET: u8 = 0x02;
pub const READ: u8 = 0x03;
pub const NODES: u8 = 0x04;
pub const PING: u8 = 0x05;
pub const EVENT: u8 = 0x06;
pub const READ_LIST: u8 = 0x07;
pub const READS: u8 = 0x08;
pub const COUNTERS: u8 = 0x09;
pub const WELCOME: u8 = 0x81;
pub const DATA: u8 = 0x82;
pub const ERROR: u8 = 0x83;
pub const PONG: u8 = 0x85;
pub const OPEN_STREAM: u8 = 0x90;
pub const POWER_OFF: u8 = 0x91;
pub const SETTINGS: u8 = 0x92;
