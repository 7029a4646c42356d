//! A pack over a file in pieces, against the same over the whole.

use literal_filter::{
    Needle, NeedleToken as Token, Needles, Pack, PackScan, REPORT_HITS_MAX, Report,
};

use super::*;

fn token() -> impl Strategy<Value = Token> {
    prop_oneof![
        4 => byte().prop_map(|value| Token::Byte { value, mask: 0xff }),
        1 => byte().prop_map(|value| Token::Byte { value: value & 0xdf, mask: 0xdf }),
        2 => (0..3u8, 0..9u8).prop_map(|(least, more)| Token::Gap { least, most: least + more }),
    ]
}

/// A needle with a key somewhere in it.
fn needle() -> impl Strategy<Value = Needle> {
    let side = || prop::collection::vec(token(), 0..5);
    (side(), byte(), byte(), side()).prop_map(|(before, a, b, after)| {
        let key = before.len();
        let byte = |value| Token::Byte { value, mask: 0xff };
        let tokens = [before, vec![byte(a), byte(b)], after].concat();
        Needle::new(tokens, key).expect("short")
    })
}

fn pack(literals: &[Literal], needles: Vec<Needle>) -> Pack {
    let filter = Filter::build(literals).unwrap();
    let needles = Needles::build(needles).unwrap();
    Pack::read(&Pack::write(&filter, &needles)).unwrap()
}

fn in_pieces<'a>(pack: &Pack, pieces: impl Iterator<Item = &'a [u8]>) -> Option<Report> {
    let mut scan = PackScan::new(pack);
    for piece in pieces {
        if scan.push(piece).is_break() {
            break;
        }
    }
    scan.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn pieces_find_what_the_whole_finds(
        (literals, data) in case(),
        needles in prop::collection::vec(needle(), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let pack = pack(&literals, needles);
        let expected = pack.scan(&data).expect("not too much");
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(data.len() + 1)).collect();
        borders.extend([0, data.len()]);
        borders.sort_unstable();
        let pieces = borders.windows(2).map(|pair| &data[pair[0]..pair[1]]);
        prop_assert_eq!(in_pieces(&pack, pieces), Some(expected.clone()));
        prop_assert_eq!(in_pieces(&pack, data.chunks(1)), Some(expected));
    }
}

#[test]
fn each_needle_across_a_border_is_found_once() {
    let byte = |value| Token::Byte { value, mask: 0xff };
    let far = [
        vec![byte(b'<')],
        vec![
            Token::Gap {
                least: 0,
                most: 255
            };
            3
        ],
        vec![byte(b'k'), byte(b'y')],
        vec![
            Token::Gap {
                least: 0,
                most: 255
            };
            3
        ],
        vec![byte(b'>')],
    ];
    let needle = Needle::new(far.concat(), 4).unwrap();
    let pack = pack(&[literal(b"literal", false)], vec![needle]);
    let mut data = vec![b'.'; 4000];
    data[1000] = b'<';
    data[1700..1702].copy_from_slice(b"ky");
    data[2400] = b'>';
    for border in 990..2410 {
        let (first, second) = data.split_at(border);
        let report = in_pieces(&pack, [first, second].into_iter()).unwrap();
        let hits: Vec<_> = report.iter().collect();
        assert_eq!(hits, [(1, &[1700][..], false)], "{border}");
    }
    // Not where it would have to reach further.
    data[1000] = b'.';
    data[900] = b'<';
    assert!(in_pieces(&pack, data.chunks(64)).unwrap().is_empty());
}

#[test]
fn more_than_a_report_can_tell_ends_the_scan() {
    let many: Vec<Literal> = (0..600)
        .map(|number| literal(format!("number {number:03};").as_bytes(), false))
        .collect();
    let pack = pack(&many, Vec::new());
    let text: Vec<u8> = many.iter().flat_map(|it| it.bytes.clone()).collect();
    let mut scan = PackScan::new(&pack);
    let broke = (0..200).position(|_| scan.push(&text).is_break());
    assert_eq!(broke, Some(REPORT_HITS_MAX / 600), "as soon as it is sure");
    assert!(scan.push(b"more").is_break());
    assert_eq!(scan.finish(), None);
    assert_eq!(pack.scan(&text.repeat(200)), None, "of the whole, too");
    assert!(pack.scan(&text).is_some());
}
