//! An entry as bytes: LEB128 numbers and bytes with their length before them. Dense, because a
//! store of 10⁸ entries is mostly clean ones.
//!
//! It is read only after its MAC was found good, and is bounded all the same.

use model::{Coverage, DETECTIONS_MAX, Detection, Generation};

use crate::{EngineVersion, Entry, Judged};

/// Bytes of one sealed entry at most; a longer one is not kept.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

const ENGINES_MAX: usize = 16;
const RANGES_MAX: usize = 4096;
const PATH_PARTS_MAX: usize = 64;

const CLEAN: u64 = 0;
const MALICIOUS: u64 = 1;

/// `None` where the entry is beyond a limit.
pub(crate) fn encode(entry: &Entry) -> Option<Vec<u8>> {
    if entry.engines.len() > ENGINES_MAX || entry.coverage.ranges.len() > RANGES_MAX {
        return None;
    }
    let mut out = Vec::with_capacity(64);
    match &entry.judged {
        Judged::Clean => number(&mut out, CLEAN),
        Judged::Malicious {
            detections,
            omitted,
        } => {
            if detections.is_empty() || detections.len() > DETECTIONS_MAX {
                return None;
            }
            number(&mut out, MALICIOUS);
            number(&mut out, u64::from(*omitted));
            number(&mut out, detections.len() as u64);
            for detection in detections {
                put_detection(&mut out, detection)?;
            }
        }
    }
    number(&mut out, entry.judged_at);
    number(&mut out, entry.engines.len() as u64);
    for engine in &entry.engines {
        bytes(&mut out, engine.name.as_bytes());
        bytes(&mut out, engine.version.as_bytes());
    }
    put_coverage(&mut out, &entry.coverage);
    bytes(&mut out, entry.plan.as_ref().map_or(&[][..], |plan| &plan.0));
    (out.len() <= VALUE_BYTES_MAX).then_some(out)
}

fn put_detection(out: &mut Vec<u8>, detection: &Detection) -> Option<()> {
    if detection.path_inside.len() > PATH_PARTS_MAX {
        return None;
    }
    bytes(out, detection.name.as_bytes());
    bytes(out, detection.engine.as_bytes());
    number(out, detection.path_inside.len() as u64);
    for part in &detection.path_inside {
        bytes(out, part);
    }
    Some(())
}

fn put_coverage(out: &mut Vec<u8>, coverage: &Coverage) {
    number(out, coverage.bytes_total);
    number(out, coverage.bytes_judged);
    number(out, u64::from(coverage.members_judged));
    number(out, coverage.member_bytes_judged);
    number(out, coverage.ranges.len() as u64);
    for (offset, length) in &coverage.ranges {
        number(out, *offset);
        number(out, *length);
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    number(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// `None` for anything that [`encode`] does not write.
pub(crate) fn decode(input: &[u8]) -> Option<Entry> {
    let mut reader = Reader(input);
    let judged = match reader.number()? {
        CLEAN => Judged::Clean,
        MALICIOUS => {
            let omitted = u32::try_from(reader.number()?).ok()?;
            let detections = reader.list(DETECTIONS_MAX, Reader::detection)?;
            if detections.is_empty() {
                return None;
            }
            Judged::Malicious {
                detections,
                omitted,
            }
        }
        _ => return None,
    };
    let judged_at = reader.number()?;
    let engines = reader.list(ENGINES_MAX, |reader| {
        Some(EngineVersion {
            name: reader.text()?,
            version: reader.text()?,
        })
    })?;
    let coverage = Coverage {
        bytes_total: reader.number()?,
        bytes_judged: reader.number()?,
        members_judged: u32::try_from(reader.number()?).ok()?,
        member_bytes_judged: reader.number()?,
        ranges: reader.list(RANGES_MAX, |reader| Some((reader.number()?, reader.number()?)))?,
    };
    let plan = match reader.bytes()? {
        [] => None,
        plan => Some(Generation::from_slice(plan)?),
    };
    reader.0.is_empty().then_some(Entry {
        judged,
        engines,
        coverage,
        plan,
        judged_at,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (value, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(value)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn list<T>(
        &mut self,
        max: usize,
        mut item: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let len = usize::try_from(self.number()?).ok()?;
        if len > max {
            return None;
        }
        (0..len).map(|_| item(self)).collect()
    }

    fn detection(&mut self) -> Option<Detection> {
        Some(Detection {
            name: self.text()?,
            engine: self.text()?,
            path_inside: self.list(PATH_PARTS_MAX, |reader| Some(reader.bytes()?.to_vec()))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn detection()(
            name in ".{0,20}",
            engine in "[a-z]{1,8}",
            path_inside in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..4),
        ) -> Detection {
            Detection { name, engine, path_inside }
        }
    }

    prop_compose! {
        fn coverage()(
            bytes_total: u64,
            bytes_judged: u64,
            members_judged: u32,
            member_bytes_judged: u64,
            ranges in prop::collection::vec(any::<(u64, u64)>(), 0..5),
        ) -> Coverage {
            Coverage { bytes_total, bytes_judged, ranges, members_judged, member_bytes_judged }
        }
    }

    prop_compose! {
        fn entry()(
            detections in prop::collection::vec(detection(), 0..4),
            omitted: u32,
            engines in prop::collection::vec(("[a-z]{1,8}", ".{0,8}"), 0..3),
            coverage in coverage(),
            plan in prop::option::of(any::<[u8; 16]>()),
            judged_at: u64,
        ) -> Entry {
            let judged = if detections.is_empty() {
                Judged::Clean
            } else {
                Judged::Malicious { detections, omitted }
            };
            let engines = engines.into_iter();
            let engines = engines.map(|(name, version)| EngineVersion { name, version });
            Entry {
                judged,
                engines: engines.collect(),
                coverage,
                plan: plan.map(Generation),
                judged_at,
            }
        }
    }

    proptest! {
        #[test]
        fn round_trip(entry in entry()) {
            let encoded = encode(&entry).unwrap();
            prop_assert_eq!(decode(&encoded), Some(entry));
            for cut in 0..encoded.len() {
                prop_assert_eq!(decode(&encoded[..cut]), None);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_clean_entry_is_small_and_a_huge_one_is_refused() {
        let mut entry = Entry {
            judged: Judged::Clean,
            engines: vec![EngineVersion {
                name: "yara".into(),
                version: "1.22.1".into(),
            }],
            coverage: Coverage::whole(100_000),
            plan: None,
            judged_at: 1_800_000_000,
        };
        let len = encode(&entry).unwrap().len();
        assert!(len < 40, "{len}");
        entry.engines[0].version = "x".repeat(VALUE_BYTES_MAX);
        assert_eq!(encode(&entry), None);
    }
}
