//! Values of `store.proto`.

use proto::v1;
use proto::v1::verdict::Outcome;

use crate::Golden;
use crate::types::verdict;

fn judged_by() -> v1::JudgedBy {
    v1::JudgedBy {
        name: "yara".into(),
        version: "1.22.1".into(),
        generation: vec![0x11; 16],
    }
}

pub(crate) fn add(golden: &mut Golden) {
    let stored = v1::StoredVerdict {
        verdict: Some(verdict(Outcome::Clean(v1::Clean {}))),
        engines: vec![judged_by()],
        judged_at_s: 1_800_000_000,
    };
    golden.add("StoredVerdict", &stored);
    golden.add("JudgedBy", &judged_by());
}
