//! What a guest says that a filter finds: nothing but what an agent can send is read. And what an
//! agent makes of any content, in any pieces, is read and says the same.
#![no_main]

use std::ops::ControlFlow;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use literal_filter::{Filter, Literal, Needle, NeedleToken, Needles, Pack, PackScan, Report};

static PACK: LazyLock<Pack> = LazyLock::new(|| {
    let literal = |bytes: &[u8], nocase| Literal {
        bytes: bytes.to_vec(),
        nocase,
    };
    let literals = [
        literal(b"aaaaa", false),
        literal(b"abcdefgh", true),
        literal(b"\0\0\0\0\0", false),
    ];
    let byte = |value| NeedleToken::Byte { value, mask: 0xff };
    let gap = NeedleToken::Gap { least: 0, most: 9 };
    let needle = Needle::new(
        vec![byte(b'a'), gap, byte(b'b'), byte(b'c'), gap, byte(0)],
        2,
    );
    let filter = Filter::build(&literals).expect("three");
    let needles = Needles::build(needle.into_iter().collect()).expect("one");
    Pack::read(&Pack::write(&filter, &needles)).expect("just written")
});

fuzz_target!(|input: (u16, &[u8])| {
    let (piece, bytes) = input;
    if let Ok(report) = Report::from_bytes(bytes, PACK.len(), u64::from(piece)) {
        assert_eq!(report.to_bytes().as_deref(), Some(bytes));
    }
    let mut scan = PackScan::new(&PACK);
    for piece in bytes.chunks(usize::from(piece).max(1)) {
        if scan.push(piece) == ControlFlow::Break(()) {
            break;
        }
    }
    let mut whole = PackScan::new(&PACK);
    let _ = whole.push(bytes);
    let found = scan.finish();
    assert_eq!(found, whole.finish());
    if let Some(sent) = found.as_ref().and_then(Report::to_bytes) {
        let read = Report::from_bytes(&sent, PACK.len(), bytes.len() as u64);
        assert_eq!(read.ok(), found);
    }
    let _ = Pack::read(bytes);
    let max = usize::from(piece);
    if let Ok(plain) = chunks::decompress_against(b"something that is here", bytes, max) {
        assert!(plain.len() <= max);
    }
});
