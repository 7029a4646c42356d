use super::*;

fn check(literals: &[Literal], data: &[u8]) {
    let filter = Filter::build(literals).unwrap();
    assert_eq!(scan(&filter, data), naive(literals, data));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn finds_what_a_naive_search_finds((literals, data) in case()) {
        check(&literals, &data);
    }

    #[test]
    fn a_stream_finds_what_a_scan_finds(
        (literals, data) in case(),
        mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let filter = Filter::build(&literals).unwrap();
        let mut borders: Vec<usize> = cuts.drain(..).map(|cut| cut.index(data.len() + 1)).collect();
        borders.extend([0, data.len()]);
        borders.sort_unstable();
        let pieces = borders.windows(2).map(|pair| &data[pair[0]..pair[1]]);
        prop_assert_eq!(stream(&filter, pieces), scan(&filter, &data));
    }

    #[test]
    fn a_stream_of_single_bytes((literals, data) in case()) {
        let filter = Filter::build(&literals).unwrap();
        prop_assert_eq!(stream(&filter, data.chunks(1)), scan(&filter, &data));
    }
}

#[test]
fn every_length_at_every_alignment() {
    for len in (5..=20).chain([63, 64, 65, 254, 255]) {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + 65) as u8).collect();
        for nocase in [false, true] {
            let literals = [literal(&bytes, nocase)];
            let filter = Filter::build(&literals).unwrap();
            for before in 0..=300 {
                for after in [0, 1, 2, 3, 70, 300] {
                    let mut data = vec![b'.'; before];
                    data.extend(&bytes);
                    data.extend(vec![b'.'; after]);
                    assert_eq!(
                        scan(&filter, &data),
                        [(0, before)],
                        "{len} {before} {after}"
                    );
                    let cut = &data[..before + len - 1];
                    assert_eq!(scan(&filter, cut), [], "{len} {before}, cut");
                }
            }
        }
    }
}

#[test]
fn across_blocks() {
    let literals = [
        literal(b"needle in it", false),
        literal(b"short", true),
        literal(b"fiver", false),
    ];
    let filter = Filter::build(&literals).unwrap();
    for block in [16 << 10, 32 << 10, 64 << 10] {
        for at in block - 22..block + 4 {
            let mut data = vec![0; 80 << 10];
            data[at..at + 12].copy_from_slice(b"needle in it");
            data[at + 12..at + 17].copy_from_slice(b"sHoRt");
            data[at + 17..at + 22].copy_from_slice(b"fiver");
            assert_eq!(scan(&filter, &data), [(0, at), (1, at + 12), (2, at + 17)]);
        }
    }
}

#[test]
fn case_is_ascii_only() {
    let literals = [
        literal(b"abc[def", true),
        literal("caf\u{e9}-bar".as_bytes(), true),
    ];
    check(&literals, b"ABC[DEF abc{def ABC{DEF aBc[dEf");
    check(&literals, "CAF\u{e9}-BAR CAF\u{c9}-BAR".as_bytes());
    let filter = Filter::build(&literals).unwrap();
    assert_eq!(scan(&filter, b"ABC[DEF abc{def"), [(0, 0)]);
}

#[test]
fn overlaps_and_equals() {
    let all = [b"aaaaa".as_slice(), b"aaaaaa", b"aaaaaaa", b"aaaaaaaaaaaa"];
    let mut literals: Vec<Literal> = all.iter().map(|bytes| literal(bytes, false)).collect();
    literals.extend(literals.clone());
    literals.push(literal(b"AAAAAAA", true));
    for len in 0..600 {
        check(&literals, &vec![b'a'; len]);
    }
}

#[test]
fn many_literals_use_large_tables() {
    // Numbers with a few digits: many share grams.
    let mut literals: Vec<Literal> = (0..20_000)
        .map(|i| literal(format!("item{i}").as_bytes(), i % 2 == 0))
        .collect();
    literals.extend((0..4000).map(|i| literal(format!("{i:05x}").as_bytes(), i % 2 == 0)));
    let data: Vec<u8> = (0..20_000)
        .step_by(97)
        .flat_map(|i| format!("ITEM{i} item{i:x}").into_bytes())
        .collect();
    check(&literals, &data[..3000.min(data.len())]);
}

#[test]
fn nothing_to_find() {
    let filter = Filter::build(&[]).unwrap();
    assert!(filter.is_empty());
    assert_eq!(filter.literal(0), None);
    assert_eq!(scan(&filter, &[0; 1000]), []);
    assert_eq!(stream(&filter, [b"ab".as_slice(), b""].into_iter()), []);
    let filter = Filter::build(&[literal(b"there", false)]).unwrap();
    assert_eq!(scan(&filter, b""), []);
    assert_eq!(scan(&filter, b"ther"), []);
}

#[test]
fn a_break_stops() {
    let filter = Filter::build(&[literal(b"stop ", false)]).unwrap();
    let data = b"stop stop stop stop";
    let mut seen = 0;
    let flow = filter.scan(data, &mut |_, _| {
        seen += 1;
        ControlFlow::Break(())
    });
    assert_eq!((seen, flow), (1, ControlFlow::Break(())));
    let mut stream = Stream::new(&filter);
    let mut seen = 0;
    for _ in 0..3 {
        let flow = stream.push(data, &mut |_, _| {
            seen += 1;
            ControlFlow::Break(())
        });
        assert!(flow.is_break());
    }
    assert_eq!(seen, 1);
}
