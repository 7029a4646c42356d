use literal_filter::{FilterError, LITERALS_MAX, SHORT_MAX, apply, delta};

use super::*;

fn same(a: &Filter, b: &Filter) -> bool {
    a.len() == b.len() && (0..=a.len() as u32).all(|id| a.literal(id) == b.literal(id))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn survives_the_wire((literals, data) in case()) {
        let filter = Filter::build(&literals).unwrap();
        let bytes = filter.to_bytes();
        let back = Filter::from_bytes(&bytes).unwrap();
        prop_assert!(same(&filter, &back));
        prop_assert_eq!(back.to_bytes(), bytes);
        prop_assert_eq!(back.digest(), filter.digest());
        prop_assert_eq!(scan(&back, &data), scan(&filter, &data));
    }

    #[test]
    fn damage_is_an_error_or_another_filter(
        literals in literals(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let filter = Filter::build(&literals).unwrap();
        let bytes = filter.to_bytes();
        let mut damaged = bytes.clone();
        for (at, value) in changes {
            *at.get_mut(&mut damaged) = value;
        }
        if let Ok(other) = Filter::from_bytes(&damaged) {
            // There is one encoding of each filter.
            prop_assert_eq!(other.to_bytes(), damaged);
        }
        let cut = cut.index(bytes.len());
        prop_assert!(Filter::from_bytes(&bytes[..cut]).is_err());
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut framed = b"LZLF\x01".to_vec();
        framed.extend(&bytes);
        prop_assert!(Filter::from_bytes(&bytes).is_err());
        let _ = Filter::from_bytes(&framed);
    }

    #[test]
    fn a_delta_leads_to_the_new_filter(
        old in literals(),
        added in literals(),
        order in any::<prop::sample::Index>(),
        drop in 1..5_usize,
    ) {
        let mut new: Vec<Literal> = old.iter().enumerate()
            .filter(|(i, _)| i % 5 >= drop % 5)
            .map(|(_, literal)| literal.clone())
            .collect();
        new.extend(added);
        if !new.is_empty() {
            let middle = order.index(new.len());
            new.rotate_left(middle);
        }
        let (old, new) = (Filter::build(&old).unwrap(), Filter::build(&new).unwrap());
        let sent = delta(&old, &new);
        prop_assert!(same(&apply(&old, &sent).unwrap(), &new));
        if !same(&old, &new) {
            let wrong_base = matches!(apply(&new, &sent), Err(FilterError::WrongBase { .. }));
            prop_assert!(wrong_base);
        }
    }

    #[test]
    fn a_damaged_delta_is_refused(
        old in literals(),
        new in literals(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let (old, new) = (Filter::build(&old).unwrap(), Filter::build(&new).unwrap());
        let sent = delta(&old, &new);
        prop_assert!(apply(&old, &sent[..cut.index(sent.len())]).is_err());
        let mut damaged = sent.clone();
        *at.get_mut(&mut damaged) ^= flip;
        // Another way to the right filter is possible, the wrong filter is not.
        if let Ok(filter) = apply(&old, &damaged) {
            prop_assert_eq!(filter.digest(), new.digest());
        }
    }
}

fn numbered(ids: impl Iterator<Item = u32>) -> Filter {
    let literals: Vec<Literal> = ids
        .map(|i| literal(format!("a literal with number {i}").as_bytes(), false))
        .collect();
    Filter::build(&literals).unwrap()
}

#[test]
fn a_small_change_is_a_small_delta() {
    let old = numbered(0..5000);
    let new = numbered(
        (0..100)
            .chain(103..3000)
            .chain(9000..9002)
            .chain(3000..5000),
    );
    let sent = delta(&old, &new);
    assert!(sent.len() < 200, "{} bytes", sent.len());
    assert!(same(&apply(&old, &sent).unwrap(), &new));
}

fn check_error(bytes: &[u8], expected: &str) {
    let mut framed = b"LZLF\x01".to_vec();
    framed.extend(bytes);
    assert_eq!(
        Filter::from_bytes(&framed).unwrap_err().to_string(),
        expected
    );
}

#[test]
fn errors_say_what_and_where() {
    check_error(
        &[],
        "literal filter ends at byte 5, inside number of literals",
    );
    check_error(
        &[1, 9, 0, b'a'],
        "literal filter ends at byte 8, inside a literal",
    );
    check_error(
        &[1, 4, 0, b'a', b'b', b'c', b'd'],
        "literal filter has a bad literal length at byte 6: 4",
    );
    check_error(
        &[1, 5, 8, 1, 2, 3, 4, 5],
        "literal filter has a bad literal flags at byte 7: 8",
    );
    check_error(
        &[1, 5, 2, 1, 2],
        "literal filter has a bad literal flags at byte 7: 2",
    );
    check_error(
        &[1, 6, 0, 1, 0, 3, 0, 5, 0],
        "literal filter has a bad literal flags at byte 7: 0",
    );
    check_error(&[0, 7], "literal filter has 1 bytes too many at byte 6");
    check_error(
        &[0x80, 0],
        "literal filter has a bad number of literals at byte 5: 0",
    );
    check_error(
        &[0xff, 0xff, 0xff, 0x7f],
        "268435455 literals; a filter has at most 262144",
    );
    let other = Filter::from_bytes(b"LZLF\x02\x00").unwrap_err();
    assert_eq!(
        other.to_string(),
        "not a literal filter of version 1: wrong first bytes"
    );
}

#[test]
fn limits() {
    for len in [0, 4, 256] {
        let error = Filter::build(&[literal(b"a good one", false), literal(&vec![1; len], false)]);
        assert_eq!(error.unwrap_err(), FilterError::Length { id: 1, len });
    }
    let many = vec![literal(b"the same", false); LITERALS_MAX + 1];
    let count = many.len() as u64;
    assert_eq!(
        Filter::build(&many).unwrap_err(),
        FilterError::TooMany { count }
    );
    let short = vec![literal(b"short", false); SHORT_MAX + 1];
    let count = short.len() as u64;
    assert_eq!(
        Filter::build(&short).unwrap_err(),
        FilterError::TooManyShort { count }
    );
    let large = vec![literal(&[7; 255], false); 70_000];
    let error = Filter::build(&large).unwrap_err();
    assert!(
        matches!(error, FilterError::TooLarge { id: 65793 }),
        "{error}"
    );
}
