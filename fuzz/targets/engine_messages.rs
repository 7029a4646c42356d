//! Whatever a taken-over engine process may say to the appliance.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use proto::v1;

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(reply) = proto::decode::<v1::EngineReply>(bytes.clone()) {
        let again = proto::encode(&reply).expect("it came in a packet");
        let body = again.slice(proto::HEADER_BYTES..);
        assert_eq!(proto::decode::<v1::EngineReply>(body).expect("ours"), reply);
    }
    if let Ok(report) = proto::decode::<v1::ScanReport>(bytes) {
        for detection in report.detections {
            let converted = model::Detection::try_from(detection);
            assert!(converted.is_err() || converted.is_ok_and(|found| !found.name.is_empty()));
        }
    }
});
