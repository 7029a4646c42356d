//! Arbitrary bytes and arbitrary messages: nothing panics, what is accepted keeps its meaning.

use bytes::BytesMut;
use model::{Outcome, Policy, Verdict};
use proptest::prelude::*;
use prost::Message;
use proto::{FRAME_MAX_BYTES, v1};

/// Feeds bytes in pieces, as a socket does; every envelope that comes out.
fn frames(bytes: &[u8], piece: usize) -> Vec<v1::Envelope> {
    let mut buffer = BytesMut::new();
    let mut envelopes = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match proto::split(&mut buffer) {
                Ok(Some(body)) => match proto::decode(body) {
                    Ok(envelope) => envelopes.push(envelope),
                    Err(_) => return envelopes,
                },
                Ok(None) => break,
                Err(_) => return envelopes,
            }
        }
        assert!(buffer.len() <= FRAME_MAX_BYTES + piece.len());
    }
    envelopes
}

/// Bytes that often begin like a frame.
fn wire() -> impl Strategy<Value = Vec<u8>> {
    let body = prop::collection::vec(any::<u8>(), 0..300);
    let framed = body.clone().prop_map(|body| {
        let len = u32::try_from(body.len()).unwrap();
        [&len.to_be_bytes()[..], &body].concat()
    });
    prop_oneof![body, framed]
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in wire(), piece in 1..64usize) {
        for envelope in frames(&bytes, piece) {
            // What was read can be written and read again.
            let again = proto::encode(&envelope).unwrap();
            prop_assert_eq!(frames(&again, piece), vec![envelope]);
        }
    }

    #[test]
    fn pieces_do_not_matter(nonces in prop::collection::vec(any::<u64>(), 0..20), piece in 1..64usize) {
        let envelope = |nonce: &u64| v1::Envelope {
            request_id: *nonce,
            body: Some(v1::envelope::Body::Ping(v1::Ping { nonce: *nonce })),
        };
        let sent: Vec<_> = nonces.iter().map(envelope).collect();
        let mut wire = BytesMut::new();
        for envelope in &sent {
            proto::encode_into(envelope, &mut wire).unwrap();
        }
        prop_assert_eq!(frames(&wire, piece), sent);
    }

    #[test]
    fn arbitrary_verdicts_convert_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = v1::Verdict::decode(&bytes[..]) {
            let was_set = message.outcome.is_some() && message.coverage.is_some();
            if let Ok(verdict) = Verdict::try_from(message) {
                prop_assert!(was_set, "a verdict was made from nothing");
                if let Outcome::Malicious { detections, .. } = &verdict.outcome {
                    prop_assert!((1..=model::DETECTIONS_MAX).contains(&detections.len()));
                }
                let again = v1::Verdict::from(&verdict);
                prop_assert_eq!(Verdict::try_from(again), Ok(verdict));
            }
        }
    }

    #[test]
    fn arbitrary_policies_are_valid_or_refused(
        revision in prop::collection::vec(any::<u8>(), 14..18),
        exec_budget_ms: u32,
        open_budget_ms: u32,
        size_max_bytes: u64,
        ride_along_max_bytes: u32,
        on_unscanned in -1..5i32,
        rules in prop::collection::vec((-1..30i32, -1..5i32), 0..5),
    ) {
        let rule = |(reason, disposition)| v1::UnscannedRule { reason, disposition };
        let message = v1::Policy {
            revision,
            exec_budget_ms: exec_budget_ms >> 12,
            open_budget_ms: open_budget_ms >> 12,
            size_max_bytes,
            ride_along_max_bytes: ride_along_max_bytes >> 12,
            on_unscanned,
            unscanned_rules: rules.into_iter().map(rule).collect(),
            ..v1::Policy::default()
        };
        if let Ok(policy) = Policy::try_from(message) {
            prop_assert_eq!(policy.validate(), Ok(()));
            let again = v1::Policy::from(&policy);
            prop_assert_eq!(Policy::try_from(again), Ok(policy));
        }
    }
}
