//! What of content of which a part is known is no container is none when it is seen whole.

use std::ops::Range;

use proptest::prelude::*;
use unpack::{Guess, HEAD_BYTES};

use crate::fixtures::{noise, zip};
use crate::glimpses::{TOLD_MAX, settle};
use crate::samples::{Sample, samples};

/// Bytes of all answers at most: the header of a mail, and what 64 end records point to.
const ASKED_MAX: usize = (16 << 10) + TOLD_MAX * 12 + 5;

/// By the head, as agents send it.
fn by_head(content: &[u8]) -> (Guess, usize) {
    settle(content, std::slice::from_ref(&(0..HEAD_BYTES)))
}

#[test]
fn every_sample_may_be_a_container() {
    for len in [10, 600, 40_000] {
        for Sample { name, bytes, .. } in samples(len) {
            assert_eq!(by_head(&bytes).0, Guess::Maybe, "{name} of {len}");
            assert_eq!(settle(&bytes, &[]).0, Guess::Maybe, "{name} of {len}");
        }
    }
    let appended = [b"MZ".as_slice(), &noise(200_000), &zip(&[("a", b"a")])].concat();
    assert_eq!(by_head(&appended).0, Guess::Maybe);
    let commented = [&appended[..], &[b' '; 60_000]].concat();
    assert_eq!(by_head(&commented).0, Guess::Maybe);
}

#[test]
fn ordinary_files_cost_nothing() {
    let check = |what: &str, bytes: &[u8], most: usize| {
        let (guess, asked) = by_head(bytes);
        assert_eq!(guess, Guess::No, "{what}");
        assert!(asked <= most, "{what}: {asked} bytes");
    };
    check("nothing", b"", 0);
    check("a word", b"word", 0);
    check("noise", &noise(300_000), 0);
    check("zeros", &[0; 300_000], 0);
    check(
        "a program",
        &[b"\x7fELF\x02\x01\x01".as_slice(), &noise(99_000)].concat(),
        0,
    );
    let script = b"#!/bin/sh\n# From: nobody\necho to: you\n".repeat(100);
    check("a script", &script, 0);
    check("one line", &[b'a'; 100_000], 0);
    let yaml = b"key: value\n".repeat(10_000);
    check("fields of no mail", &yaml, 16 << 10);
    let ends = b"PK\x05\x06 and nothing that fits".repeat(40);
    check(
        "many ends of no zip",
        &[&noise(90_000)[..], &ends].concat(),
        40 * 12,
    );
}

#[test]
fn what_was_not_told_is_asked_for_or_left_open() {
    // The header of a PDF in its first KiB, behind more of them than are told.
    let headers = b"%PDF-".repeat(300);
    assert_eq!(by_head(&headers).0, Guess::Maybe);
    // Of the last ends of a zip nothing is known.
    let ends = [&noise(600)[..], &b"PK\x05\x06 ".repeat(100)].concat();
    assert_eq!(by_head(&ends).0, Guess::Maybe);
    let magics = [&noise(600)[..], &b"CD001 ".repeat(100), &noise(60_000)].concat();
    assert_eq!(by_head(&magics), (Guess::No, 5));
}

/// Bytes of text that matter to what reads headers.
const TEXT: &[u8] = b"\n\n\r:: \taF\0";
const WORDS: [&str; 8] = [
    "From: ",
    "From me\n",
    "Subject",
    "content-type:",
    "MIME-Version: 1\n",
    "\n ",
    "to:",
    "x-y: z\r\n",
];

fn text() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(&WORDS[..]).prop_map(|word| word.as_bytes().to_vec());
    let byte = prop::sample::select(TEXT).prop_map(|byte| vec![byte]);
    let filler = (0usize..900).prop_map(|len| vec![b'a'; len]);
    let part = prop_oneof![4 => word, 4 => byte, 1 => filler];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

fn known_ranges() -> impl Strategy<Value = Vec<Range<usize>>> {
    let range = (0usize..70_000, 0usize..5_000).prop_map(|(at, len)| at..at + len);
    let head = prop::sample::select(vec![0, 1, HEAD_BYTES, 700, 2_000]);
    (head, prop::collection::vec(range, 0..4)).prop_map(|(head, mut ranges)| {
        ranges.push(0..head);
        ranges
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_containers_are_never_missed(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        before in prop::sample::select(vec![0usize, 0, 0, 1, 700, 33_000]),
        behind in prop::sample::select(vec![0usize, 0, 1, 40_000, 70_000]),
        known in known_ranges(),
    ) {
        thread_local!(static SAMPLES: Vec<Sample> = samples(600));
        let sample = SAMPLES.with(|samples| pick.get(samples).bytes.clone());
        let mut bytes = [&noise(before)[..], &sample, &vec![b'.'; behind]].concat();
        for (at, value) in changes {
            let len = if value % 2 == 0 { bytes.len().min(600) } else { bytes.len() };
            let at = at.index(len);
            bytes[at] = value;
        }
        settle(&bytes, &known);
    }

    #[test]
    fn texts_are_never_missed(text in text(), repeat in 1usize..30, known in known_ranges()) {
        let (guess, asked) = settle(&text.repeat(repeat), &known);
        prop_assert!(guess != Guess::No || asked <= ASKED_MAX);
    }
}
