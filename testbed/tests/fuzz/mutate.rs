//! Changed bytes: flipped, cut, put together from two inputs, with numbers that are lengths made too long and too short.
//!
//! Decides the change from the randomness it is handed.

use rand::Rng;
use rand::rngs::SmallRng;

/// Numbers at which decoders go wrong.
const EDGES: &[u64] = &[
    0,
    1,
    2,
    127,
    128,
    250,
    251,
    252,
    253,
    254,
    255,
    256,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];

/// One change.
pub fn changed(bytes: &[u8], other: &[u8], rng: &mut SmallRng) -> Vec<u8> {
    let mut new = bytes.to_vec();
    if new.is_empty() {
        return other.to_vec();
    }
    let at = rng.random_range(0..new.len());
    match rng.random_range(0..12) {
        0..2 => new[at] ^= 1 << rng.random_range(0..8),
        2 => new[at] = rng.random(),
        3 => new[at] = new[at].wrapping_add(rng.random_range(0..3u8).wrapping_sub(1)),
        4 => new.truncate(at),
        5 => {
            new.drain(at..(at + rng.random_range(1..=16)).min(bytes.len()));
        }
        6 => {
            let piece = new[at..(at + rng.random_range(1..=64)).min(bytes.len())].to_vec();
            let to = rng.random_range(0..=new.len());
            new.splice(to..to, piece);
        }
        7 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let piece = other[from..(from + rng.random_range(1..=256)).min(other.len())].to_vec();
            let end = (at + rng.random_range(0..=piece.len())).min(new.len());
            new.splice(at..end, piece);
        }
        8 => fixed(&mut new, at, rng),
        9 => varint(&mut new, at, rng),
        10 => decimal(&mut new, at, rng),
        _ => {
            let from = rng.random_range(0..=other.len());
            new.truncate(at);
            new.extend_from_slice(&other[from..]);
        }
    }
    new
}

fn edge(rng: &mut SmallRng, length: usize) -> u64 {
    match rng.random_range(0..4) {
        0 => length as u64 + rng.random_range(0..3) - 1,
        1 => u64::from(rng.random::<u32>()) << rng.random_range(0..24),
        _ => EDGES[rng.random_range(0..EDGES.len())],
    }
}

/// A number of fixed width, either end first.
fn fixed(bytes: &mut [u8], at: usize, rng: &mut SmallRng) {
    let (number, width) = (edge(rng, bytes.len()), [2, 4, 8][rng.random_range(0..3)]);
    let raw =
        if rng.random_bool(0.7) { number.to_le_bytes() } else { (number << (64 - 8 * width)).to_be_bytes() };
    let end = (at + width as usize).min(bytes.len());
    bytes[at..end].copy_from_slice(&raw[..end - at]);
}

/// A number as bincode writes it, or protobuf.
fn varint(bytes: &mut Vec<u8>, at: usize, rng: &mut SmallRng) {
    let mut number = edge(rng, bytes.len());
    let mut raw = Vec::new();
    if rng.random_bool(0.5) {
        match number {
            ..=250 => raw.push(number as u8),
            251..=0xffff => raw.extend([&[251][..], &number.to_le_bytes()[..2]].concat()),
            0x1_0000..=0xffff_ffff => raw.extend([&[252][..], &number.to_le_bytes()[..4]].concat()),
            _ => raw.extend([&[253][..], &number.to_le_bytes()].concat()),
        }
    } else {
        while number >= 0x80 {
            raw.push(number as u8 | 0x80);
            number >>= 7;
        }
        raw.push(number as u8);
    }
    bytes.splice(at..=at, raw);
}

/// A number in a text document, or a bracket of it.
fn decimal(bytes: &mut Vec<u8>, at: usize, rng: &mut SmallRng) {
    let text = match rng.random_range(0..4) {
        0 => ["null", "[", "]", "{", "}", "\"", "-", "1e999", "\\u0000", "[[[[[[[["][rng.random_range(0..10)]
            .to_string(),
        _ => edge(rng, bytes.len()).to_string(),
    };
    let end =
        bytes[at..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bytes.len(), |length| at + length);
    bytes.splice(at..end, text.into_bytes());
}
