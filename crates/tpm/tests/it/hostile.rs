//! Whatever a TPM answers, and whatever is shown as a certificate: an error at worst.

use std::io;
use std::time::SystemTime;

use proptest::prelude::*;
use tpm::{Tpm, Transport, check_ca, verify};

/// Answers with these bytes, behind a header that is good or not, and then never again.
struct Puppet {
    answers: Vec<(bool, Vec<u8>)>,
}

impl Transport for Puppet {
    fn exchange(&mut self, _: &[u8]) -> io::Result<Vec<u8>> {
        let (is_framed, body) = self.answers.pop().ok_or(io::ErrorKind::BrokenPipe)?;
        if !is_framed {
            return Ok(body);
        }
        let size = u32::try_from(body.len() + 10).unwrap();
        let tag = if body.len() % 2 == 0 { 1 } else { 2 };
        let header = [&[0x80, tag][..], &size.to_be_bytes(), &[0; 4]].concat();
        Ok([header, body].concat())
    }
}

/// Structures that are nearly right get farther than noise.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let sized = prop::collection::vec(any::<u8>(), 0..600);
    let sized = sized.prop_map(|bytes| {
        let count = u16::try_from(bytes.len()).unwrap();
        [&count.to_be_bytes()[..], &bytes].concat()
    });
    // What an index is like: attributes that anybody reads, 300 bytes.
    let index = [0, 14, 1, 0xc0, 0, 2, 0, 11, 0, 4, 0, 0, 0, 0, 1, 44, 0, 0];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        sized.clone(),
        (any::<[u8; 8]>(), sized).prop_map(|(head, rest)| [&head[..], &rest].concat()),
        Just(index.to_vec()),
    ]
}

fn answers() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    prop::collection::vec((prop::bool::weighted(0.9), body()), 0..40)
}

proptest! {
    #[test]
    fn answers_of_a_tpm_never_panic(answers in answers(), challenge in body()) {
        let mut tpm = Tpm::new(Puppet { answers });
        if let Ok(shown) = tpm.show() {
            prop_assert!(shown.certificate.len() <= tpm::CERTIFICATE_MAX_BYTES);
            prop_assert!(shown.intermediates.len() <= tpm::INTERMEDIATES_MAX_BYTES);
        }
        let _ = tpm.open(&challenge);
    }

    #[test]
    fn noise_is_no_certificate(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check_ca(&noise).is_err());
        prop_assert!(verify(&noise, &noise, &[&noise], SystemTime::now()).is_err());
    }
}

/// A real one that was changed anywhere: its signature does not hold, or what was changed is how that
/// is wrapped; it never says anything else.
#[test]
fn a_certificate_that_was_changed_says_nothing_else() {
    let made = crate::certificates::endorsed();
    let now = SystemTime::now();
    let unchanged = verify(&made.leaf, &[], &[&made.ca], now).unwrap();
    for at in 0..made.leaf.len() {
        for by in [1, 2, 4, 0x20, 0x80, 0xff] {
            let mut changed = made.leaf.clone();
            changed[at] ^= by;
            if let Ok(endorsed) = verify(&changed, &[], &[&made.ca], now) {
                assert_eq!(endorsed, unchanged, "byte {at} by {by}");
            }
            let _ = verify(&made.leaf, &changed, &[&changed], now);
        }
    }
}
