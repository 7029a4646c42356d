//! From one filter to the next: what both have is named by its id, the rest is sent.
//!
//! `LZLD`, a version byte, the digests of the old and of the new filter, the number of steps
//! (varint), the steps. A step starts with a varint: twice the number of literals, plus 1 if they
//! are copied from the old filter. A copy goes on with the first old id (varint), another with the
//! literals as in a filter. What is not copied is removed.

use std::collections::HashMap;

use crate::filter::{LITERALS_MAX, Pool};
use crate::wire::{Reader, put_literal, put_varint};
use crate::{Filter, FilterError};

const MAGIC: [u8; 5] = *b"LZLD\x01";

/// Some literals of the new filter, in its order.
enum Step {
    /// `len` literals of the old filter from `first` on.
    Copy { first: u32, len: u32 },
    /// `len` literals of the new filter from `first` on.
    Add { first: u32, len: u32 },
}

/// What must be sent to who has `old` so that [`apply`] makes `new` of it. Deterministic.
pub fn delta(old: &Filter, new: &Filter) -> Vec<u8> {
    let steps = steps(old, new);
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&old.digest());
    out.extend_from_slice(&new.digest());
    put_varint(&mut out, steps.len() as u64);
    for step in steps {
        match step {
            Step::Copy { first, len } => {
                put_varint(&mut out, u64::from(len) << 1 | 1);
                put_varint(&mut out, u64::from(first));
            }
            Step::Add { first, len } => {
                put_varint(&mut out, u64::from(len) << 1);
                for id in first..first + len {
                    if let Some((literal, nocase)) = new.literal(id) {
                        put_literal(&mut out, literal, nocase);
                    }
                }
            }
        }
    }
    out
}

fn steps(old: &Filter, new: &Filter) -> Vec<Step> {
    let mut ids: HashMap<(&[u8], bool), u32> = HashMap::new();
    for (id, literal) in old.pool().iter().enumerate() {
        // Of equal literals the first; a run goes on with the others all the same.
        ids.entry(literal).or_insert(id as u32);
    }
    let mut steps: Vec<Step> = Vec::new();
    for (id, literal) in new.pool().iter().enumerate() {
        let id = id as u32;
        match (steps.last_mut(), ids.get(&literal)) {
            (Some(Step::Copy { first, len }), _) if old.literal(*first + *len) == Some(literal) => {
                *len += 1;
            }
            (_, Some(first)) => steps.push(Step::Copy {
                first: *first,
                len: 1,
            }),
            (Some(Step::Add { len, .. }), None) => *len += 1,
            (_, None) => steps.push(Step::Add { first: id, len: 1 }),
        }
    }
    steps
}

/// The filter that `delta` leads to from `old`.
///
/// # Errors
/// The delta is damaged, starts from another filter, or does not lead to the filter that it names.
pub fn apply(old: &Filter, delta: &[u8]) -> Result<Filter, FilterError> {
    let mut reader = Reader {
        what: "filter delta",
        bytes: delta,
        at: 0,
    };
    reader.magic(MAGIC)?;
    let base = reader.take(32, "the old filter's digest")?;
    if base != old.digest() {
        return Err(FilterError::WrongBase {
            wanted: hex(base),
            have: hex(&old.digest()),
        });
    }
    let result = reader.take(32, "the new filter's digest")?;
    let mut pool = Pool::default();
    for _ in 0..reader.varint("number of steps")? {
        step(&mut reader, old, &mut pool)?;
    }
    reader.end()?;
    let new = Filter::from_pool(pool);
    let digest = new.digest();
    if result != digest {
        return Err(FilterError::WrongResult {
            wanted: hex(result),
            have: hex(&digest),
        });
    }
    Ok(new)
}

fn step(reader: &mut Reader, old: &Filter, pool: &mut Pool) -> Result<(), FilterError> {
    let at = reader.at;
    let head = reader.varint("a step")?;
    let len = head >> 1;
    if len == 0 {
        return Err(reader.bad("step", at, 0));
    }
    if pool.spans.len() + len as usize > LITERALS_MAX {
        return Err(FilterError::TooMany {
            count: pool.spans.len() as u64 + u64::from(len),
        });
    }
    if head & 1 == 0 {
        return (0..len).try_for_each(|_| reader.literal(pool));
    }
    let at = reader.at;
    let first = reader.varint("a copy")?;
    for id in first..first + len {
        let Some((literal, nocase)) = old.literal(id) else {
            return Err(reader.bad("copy of literal", at, u64::from(id)));
        };
        pool.push(literal, nocase)?;
    }
    Ok(())
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
