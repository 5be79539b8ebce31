//! The verifier: what belongs to an object passes, nothing else does, and no input makes it panic.
#![no_main]

use arbitrary::Arbitrary;
use lazyroot_proto::Algorithm;
use lazyroot_proto::verity::{BLOCK, LeafHasher, digest, digest_of_leaves, digests, leaves, leaves_len, range_matches};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    sha512: bool,
    /// The object's first bytes.
    head: Vec<u8>,
    /// How much longer it is: some have two levels in their tree, which begin at 512 KiB (SHA-512: 256 KiB).
    more: u32,
    /// A range of it, in blocks.
    first: u16,
    blocks: u8,
    /// What a liar changes: where, and by what.
    at: u32,
    flip: u8,
    /// Leaves, and a place, that belong to nothing.
    made_up: Vec<u8>,
    size: u64,
    offset: u64,
}

fuzz_target!(|input: Input| {
    let algorithm = if input.sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 };

    // Anything at all, without panic.
    let _ = digest_of_leaves(algorithm, &input.made_up, input.size);
    let _ = range_matches(algorithm, &input.made_up, input.offset, &input.head);

    let mut data = input.head;
    // Seldom a long one: hashing takes its time.
    let most = if input.more % 8 == 0 { 600_000 } else { 30_000 };
    data.resize(data.len() + (input.more / 8 % most) as usize, input.flip);
    let (id, known) = (digest(algorithm, &data), leaves(algorithm, &data));
    assert_eq!(known.len() as u64, leaves_len(algorithm, data.len() as u64));
    assert_eq!(digest_of_leaves(algorithm, &known, data.len() as u64), Some(id));

    // Beside others, too.
    let beside = digests(algorithm, &[&data, &input.made_up, &data]);
    assert_eq!(beside, [id, digest(algorithm, &input.made_up), id]);

    // In pieces it is the same object.
    let mut hasher = LeafHasher::new(algorithm);
    data.chunks(usize::from(input.first) + 1).for_each(|piece| hasher.update(piece));
    assert_eq!(hasher.finish(), (id, known.clone()));

    // Another size is another object, and other leaves are too.
    assert_ne!(digest_of_leaves(algorithm, &known, data.len() as u64 + 1), Some(id));
    if !known.is_empty() && input.flip != 0 {
        let mut changed = known.clone();
        let at = input.at as usize % changed.len();
        changed[at] ^= input.flip;
        assert_ne!(digest_of_leaves(algorithm, &changed, data.len() as u64), Some(id));
    }

    if data.is_empty() {
        return;
    }
    let start = (usize::from(input.first) * BLOCK).min((data.len() - 1) / BLOCK * BLOCK);
    let end = (start + (usize::from(input.blocks) + 1) * BLOCK).min(data.len());
    let mut range = data[start..end].to_vec();
    assert!(range_matches(algorithm, &known, start as u64, &range));
    // At another place it passes only if the object has the same bytes there, zeros behind its end.
    let elsewhere = input.offset as usize % data.len() / BLOCK * BLOCK;
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    };
    let whole = padded(&data);
    let looks_the_same = whole[elsewhere..].get(..padded(&range).len()) == Some(&padded(&range)[..]);
    assert_eq!(range_matches(algorithm, &known, elsewhere as u64, &range), looks_the_same);
    // Unaligned it never does.
    assert!(!range_matches(algorithm, &known, start as u64 + 1, &range));
    // Changed it never does.
    if input.flip != 0 {
        let at = input.at as usize % range.len();
        range[at] ^= input.flip;
        assert!(!range_matches(algorithm, &known, start as u64, &range));
    }
});
