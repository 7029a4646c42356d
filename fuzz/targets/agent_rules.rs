//! Whatever an agent may send after its Hello, against the rules of a session: nothing panics,
//! and no more data is let through than was granted.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use link::server::rules::{AgentRules, Pass};
use proto::v1::envelope::Body;
use proto::v1::{self, Envelope};

const CREDIT_BYTES: u32 = 1000;

fuzz_target!(|input: (bool, &[u8])| {
    let (renew_only, bytes) = input;
    let mut rules = AgentRules::new(4, renew_only);
    let mut buffer = BytesMut::from(bytes);
    let mut granted = 0u64;
    let mut taken = 0u64;
    while let Ok(Some(body)) = proto::split(&mut buffer) {
        let Ok(envelope) = proto::decode::<Envelope>(body) else {
            return;
        };
        let Ok(pass) = rules.received(&envelope) else {
            return;
        };
        if pass != Pass::Deliver {
            continue;
        }
        let request_id = envelope.request_id;
        match envelope.body {
            Some(Body::Check(_)) => {
                granted += u64::from(CREDIT_BYTES);
                rules.sending(&Envelope {
                    request_id,
                    body: Some(Body::Need(v1::Need {
                        credit_bytes: CREDIT_BYTES,
                        ..v1::Need::default()
                    })),
                });
            }
            Some(Body::Data(data)) => taken += data.bytes.len() as u64,
            _ => {}
        }
        assert!(taken <= granted);
        assert!(!renew_only || granted == 0);
    }
});
