//! Whatever an agent or an appliance may send: it decodes or is refused, and what a conversion
//! accepts is the same after a round trip.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use model::{Outcome, Policy, Verdict};
use proto::v1::{self, envelope::Body};

fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = proto::decode::<v1::Envelope>(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let again = proto::encode(&envelope).expect("it came in a frame");
    let body = again.slice(proto::HEADER_BYTES..);
    assert_eq!(proto::decode::<v1::Envelope>(body).expect("ours"), envelope);
    match envelope.body {
        Some(Body::CheckReply(reply)) => reply.verdict.into_iter().for_each(verdict),
        Some(Body::Policy(message)) => policy(message),
        Some(Body::Welcome(welcome)) => welcome.policy.into_iter().for_each(policy),
        _ => {}
    }
});

fn verdict(message: v1::Verdict) {
    if let Ok(verdict) = Verdict::try_from(message) {
        if let Outcome::Malicious { detections, .. } = &verdict.outcome {
            assert!(!detections.is_empty() && detections.len() <= model::DETECTIONS_MAX);
        }
        let again = Verdict::try_from(v1::Verdict::from(&verdict)).expect("ours");
        assert_eq!(again, verdict);
    }
}

fn policy(message: v1::Policy) {
    if let Ok(policy) = Policy::try_from(message) {
        policy
            .validate()
            .expect("a conversion lets no bad one through");
        let again = Policy::try_from(v1::Policy::from(&policy)).expect("ours");
        assert_eq!(again, policy);
    }
}
