//! The filter against a naive search.

mod search;
mod wire;

use std::ops::ControlFlow;

use literal_filter::{Filter, Literal, Stream};
use proptest::prelude::*;

/// Occurrences as (id, offset), sorted.
type Hits = Vec<(u32, usize)>;

fn naive(literals: &[Literal], data: &[u8]) -> Hits {
    let mut hits = Vec::new();
    for (id, literal) in literals.iter().enumerate() {
        for (at, window) in data.windows(literal.bytes.len()).enumerate() {
            let equal = match literal.nocase {
                true => window.eq_ignore_ascii_case(&literal.bytes),
                false => window == literal.bytes,
            };
            if equal {
                hits.push((id as u32, at));
            }
        }
    }
    hits.sort_unstable();
    hits
}

fn scan(filter: &Filter, data: &[u8]) -> Hits {
    let mut hits = Vec::new();
    let flow = filter.scan(data, &mut |id, at| {
        hits.push((id, at));
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    hits.sort_unstable();
    hits
}

fn stream<'a>(filter: &Filter, pieces: impl Iterator<Item = &'a [u8]>) -> Hits {
    let mut hits = Vec::new();
    let mut stream = Stream::new(filter);
    let mut total = 0;
    for piece in pieces {
        total += piece.len() as u64;
        let flow = stream.push(piece, &mut |id, at| {
            hits.push((id, at as usize));
            ControlFlow::Continue(())
        });
        assert!(flow.is_continue());
    }
    assert_eq!(stream.finish(), total);
    hits.sort_unstable();
    hits
}

fn literal(bytes: &[u8], nocase: bool) -> Literal {
    Literal {
        bytes: bytes.to_vec(),
        nocase,
    }
}

/// Few letters, so that things overlap: both cases, zeros, and bytes that folding confuses.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        8 => prop::sample::select(b"abAB\0 ".to_vec()),
        1 => any::<u8>(),
    ]
}

fn a_literal() -> impl Strategy<Value = Literal> {
    let short = prop::collection::vec(byte(), 5..12);
    let long = prop::collection::vec(byte(), 5..256);
    let wide = prop::collection::vec(byte(), 3..20)
        .prop_map(|narrow| narrow.iter().flat_map(|byte| [*byte, 0]).collect());
    (prop_oneof![6 => short, 1 => long, 1 => wide], any::<bool>())
        .prop_map(|(bytes, nocase)| Literal { bytes, nocase })
}

fn literals() -> impl Strategy<Value = Vec<Literal>> {
    prop::collection::vec(a_literal(), 0..24)
}

/// Noise with some of the literals in it, their case changed here and there.
fn data(literals: Vec<Literal>) -> impl Strategy<Value = (Vec<Literal>, Vec<u8>)> {
    let part = (
        prop::collection::vec(byte(), 0..60),
        any::<prop::sample::Index>(),
        any::<bool>(),
    );
    prop::collection::vec(part, 0..20).prop_map(move |parts| {
        let mut data = Vec::new();
        for (noise, index, swap) in parts {
            data.extend(noise);
            if !literals.is_empty() {
                let bytes = &index.get(&literals).bytes;
                data.extend(
                    bytes
                        .iter()
                        .map(|byte| match swap && byte.is_ascii_alphabetic() {
                            true => byte ^ 0x20,
                            false => *byte,
                        }),
                );
            }
        }
        (literals.clone(), data)
    })
}

fn case() -> impl Strategy<Value = (Vec<Literal>, Vec<u8>)> {
    literals().prop_flat_map(data)
}
