//! Values of `types.proto`.

use proto::v1;
use proto::v1::verdict::Outcome;

use crate::Golden;

pub(crate) fn detection() -> v1::Detection {
    v1::Detection {
        name: "Eicar-Signature".into(),
        engine: "yara".into(),
        path_inside: vec![b"a.tar".to_vec(), vec![0xff, 0x0a]],
    }
}

pub(crate) fn malicious() -> v1::Malicious {
    v1::Malicious {
        detections: vec![detection()],
        omitted: 3,
    }
}

pub(crate) fn unscanned() -> v1::Unscanned {
    v1::Unscanned {
        reason: v1::UnscannedReason::UnpackDepth as i32,
        detail: "depth_max 16".into(),
    }
}

pub(crate) fn error() -> v1::Error {
    v1::Error {
        message: "spool: read-only file system".into(),
    }
}

pub(crate) fn range() -> v1::ByteRange {
    v1::ByteRange {
        offset: 1 << 33,
        length: 4096,
    }
}

pub(crate) fn coverage() -> v1::Coverage {
    v1::Coverage {
        bytes_total: 1 << 34,
        bytes_judged: 4096,
        ranges: vec![range()],
        members_judged: 7,
        member_bytes_judged: 70_000,
        filter: vec![0x66; 16],
    }
}

pub(crate) fn verdict(outcome: Outcome) -> v1::Verdict {
    v1::Verdict {
        outcome: Some(outcome),
        coverage: Some(coverage()),
        generation: vec![0x11; 16],
        blake3: vec![0x22; 32],
        sha256: vec![0x33; 32],
    }
}

pub(crate) fn policy() -> v1::Policy {
    v1::Policy {
        revision: vec![0x44; 16],
        exec_budget_ms: 5000,
        open_budget_ms: 10_000,
        size_max_bytes: 256 << 20,
        ride_along_max_bytes: 65_536,
        on_malicious: v1::Disposition::Deny as i32,
        on_unscanned: v1::Disposition::Allow as i32,
        unscanned_rules: vec![rule()],
        on_error: v1::Disposition::Allow as i32,
        context_sensitive: true,
        scan_on_close: true,
        on_late_malicious: v1::LateAction::Kill as i32,
        compress: true,
        report_min_bytes: 4096,
    }
}

fn rule() -> v1::UnscannedRule {
    v1::UnscannedRule {
        reason: v1::UnscannedReason::Encrypted as i32,
        disposition: v1::Disposition::Deny as i32,
    }
}

pub(crate) fn machine_facts() -> v1::MachineFacts {
    v1::MachineFacts {
        generation_id: vec![0x77; 16],
        system_uuid: vec![0x88; 16],
        macs: vec![vec![0x52, 0x54, 0, 0, 0, 1]],
        boot_id: vec![0x99; 16],
    }
}

pub(crate) fn add(golden: &mut Golden) {
    golden.add("Clean", &v1::Clean {});
    golden.add("Malicious", &malicious());
    golden.add("Detection", &detection());
    golden.add("Unscanned", &unscanned());
    golden.add("Error", &error());
    golden.add("ByteRange", &range());
    golden.add("Coverage", &coverage());
    golden.add("UnscannedRule", &rule());
    golden.add("Policy", &policy());
    golden.add("Verdict", &verdict(Outcome::Malicious(malicious())));
    let mut outcome = |name: &str, outcome| {
        golden.add(&format!("Verdict.{name}"), &verdict(outcome));
    };
    outcome("Clean", Outcome::Clean(v1::Clean {}));
    outcome("Malicious", Outcome::Malicious(malicious()));
    outcome("Unscanned", Outcome::Unscanned(unscanned()));
    outcome("Error", Outcome::Error(error()));
    golden.add("MachineFacts", &machine_facts());
}
