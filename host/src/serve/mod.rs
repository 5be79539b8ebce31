//! The object server: sessions with guests over any transport.
