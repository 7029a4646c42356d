//! What of content of which a part is known is no container is none when it is seen whole.

use std::ops::Range;

use proptest::prelude::*;
use unpack::{Format, Glimpse, Guess, HEAD_BYTES, Mark};

use crate::fixtures::{noise, zip};
use crate::samples::{Sample, samples};

/// Places of a mark that are told; the lowest.
const TOLD_MAX: usize = 64;
/// Questions at most: a directory behind an end record, and three pieces of a text.
const ROUNDS_MAX: usize = 4;
/// Bytes of all answers at most: the header of a mail, and what 64 end records point to.
const ASKED_MAX: usize = (16 << 10) + TOLD_MAX * 12 + 5;

/// Content, and which bytes of it are known.
struct Known<'a> {
    content: &'a [u8],
    known: Vec<bool>,
}

impl<'a> Known<'a> {
    fn new(content: &'a [u8], ranges: &[Range<usize>]) -> Self {
        let mut known = Self {
            content,
            known: vec![false; content.len()],
        };
        for range in ranges {
            known.learn(range.clone());
        }
        known
    }

    /// How many bytes are new.
    fn learn(&mut self, range: Range<usize>) -> usize {
        let len = self.known.len();
        let part = &mut self.known[range.start.min(len)..range.end.min(len)];
        let new = part.iter().filter(|known| !**known).count();
        part.fill(true);
        new
    }
}

impl Glimpse for Known<'_> {
    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = (at as usize).min(self.content.len());
        let to = from.saturating_add(len).min(self.content.len());
        let all = self.known[from..to].iter().all(|known| *known);
        all.then(|| &self.content[from..to])
    }

    fn places(&self, mark: Mark, within: Range<u64>) -> Option<Vec<u64>> {
        let bytes = mark.bytes();
        let windows = self.content.windows(bytes.len()).enumerate();
        let found = windows.filter(|(_, window)| *window == bytes);
        let all: Vec<u64> = found.map(|(at, _)| at as u64).collect();
        let told = &all[..all.len().min(TOLD_MAX)];
        let is_all = told.len() == all.len() || told.last() >= Some(&(within.end - 1));
        is_all.then(|| {
            told.iter()
                .copied()
                .filter(|at| within.contains(at))
                .collect()
        })
    }
}

/// Guesses until it is settled; the bytes that were asked for. Never wrong on the way.
fn settle(content: &[u8], ranges: &[Range<usize>]) -> (Guess, usize) {
    let mut known = Known::new(content, ranges);
    let mut asked = 0;
    for _ in 0..=ROUNDS_MAX {
        match Format::guess(&known) {
            Guess::Needs(ranges) => {
                let learn =
                    |range: Range<u64>| known.learn(range.start as usize..range.end as usize);
                let new: usize = ranges.into_iter().map(learn).sum();
                assert!(new > 0, "asked for what is known");
                asked += new;
            }
            Guess::No => {
                assert_eq!(Format::detect(content), None);
                return (Guess::No, asked);
            }
            Guess::Maybe => return (Guess::Maybe, asked),
        }
    }
    panic!("asks again and again");
}

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
