//! Each limit by itself: what it says, what is still shown, what goes on.

use std::cell::Cell;
use std::ops::ControlFlow;

use unpack::IncompleteKind::{Depth, Entries, EntryBytes, Ratio, TotalBytes, Unsupported};
use unpack::{Budget, DEPTH_CEILING, End, Limits};

use crate::fixtures::*;
use crate::handmade::*;
use crate::walked::{walked, walked_with};

#[test]
fn depth() {
    let three = zip(&[
        ("a.zip", &zip(&[("b.zip", &zip(&[("c", MARKER)]))])),
        ("next", MARKER),
    ]);
    let limits = |depth_max| Limits {
        depth_max,
        ..Limits::default()
    };
    let enough = walked_with(&three, &limits(3));
    assert_eq!((enough.kind(), enough.marked().len()), (None, 2));
    let short = walked_with(&three, &limits(2));
    assert_eq!(short.kind(), Some(Depth));
    assert_eq!(short.incomplete_path().as_deref(), Some("a.zip > b.zip"));
    assert_eq!(
        short.paths(),
        ["a.zip", "a.zip > b.zip", "next"],
        "siblings go on"
    );
    let off = walked_with(&three, &limits(0));
    assert_eq!((off.kind(), off.members.len()), (None, 0));
}

#[test]
fn depth_is_clamped() {
    let mut bytes = planted(50);
    for _ in 0..200 {
        bytes = ar(&[("x", &bytes)], ArNames::Gnu);
    }
    let limits = Limits {
        depth_max: u32::MAX,
        ..Limits::default()
    };
    let walked = walked_with(&bytes, &limits);
    assert_eq!(walked.kind(), Some(Depth));
    assert_eq!(walked.members.len(), DEPTH_CEILING as usize);
}

#[test]
fn entries() {
    let names: Vec<String> = (0..20).map(|i| format!("f{i}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), MARKER)).collect();
    let limits = Limits {
        entries_max: 5,
        ..Limits::default()
    };
    for archive in [
        zip(&files),
        tar(&files),
        sevenz(&[&files]),
        iso(&files, None),
    ] {
        let walked = walked_with(&archive, &limits);
        assert_eq!(walked.kind(), Some(Entries));
        assert_eq!(walked.marked().len(), 5, "what came before is shown");
    }
    let exact = Limits {
        entries_max: 20,
        ..Limits::default()
    };
    assert_eq!(walked_with(&zip(&files), &exact).kind(), None);
    let nested = zip(&[("a.zip", &zip(&files)), ("after", b"")]);
    assert_eq!(
        walked_with(&nested, &limits).paths().len(),
        5,
        "over all levels"
    );
}

#[test]
fn entry_bytes() {
    let big = [MARKER, &noise(3000)].concat();
    let files: &Files<'_> = &[("big", &big), ("small", MARKER)];
    let limits = Limits {
        entry_bytes_max: 1000,
        ..Limits::default()
    };
    for archive in [
        zip(files),
        tar(files),
        ar(files, ArNames::Gnu),
        iso(files, None),
        mail(files),
    ] {
        let walked = walked_with(&archive, &limits);
        assert_eq!(walked.kind(), Some(EntryBytes));
        assert!(walked.incomplete_path().expect("a place").ends_with("big"));
        assert_eq!(
            walked.marked().len(),
            2,
            "the start of it and its sibling are shown"
        );
        assert!(walked.members.iter().all(|(_, bytes)| bytes.len() <= 1000));
    }
    let exact = Limits {
        entry_bytes_max: big.len() as u64,
        ..Limits::default()
    };
    assert_eq!(walked_with(&zip(files), &exact).kind(), None);
}

#[test]
fn total_bytes() {
    let content = noise(1000);
    let files: &Files<'_> = &[
        ("a", &content),
        ("b", &content),
        ("c", &content),
        ("d", &content),
    ];
    let limits = Limits {
        total_bytes_max: 2500,
        ..Limits::default()
    };
    for archive in [
        zip(files),
        tar(files),
        sevenz(&[files]),
        cpio(files, CpioKind::Odc),
    ] {
        let walked = walked_with(&archive, &limits);
        assert_eq!(walked.kind(), Some(TotalBytes));
        let lens: Vec<usize> = walked
            .members
            .iter()
            .map(|(_, bytes)| bytes.len())
            .collect();
        assert_eq!(lens.iter().sum::<usize>(), 2500, "{lens:?}");
        assert_eq!(walked.summary.bytes, 2500);
    }
    let exact = Limits {
        total_bytes_max: 4000,
        ..Limits::default()
    };
    assert_eq!(walked_with(&tar(files), &exact).kind(), None);
}

#[test]
fn ratio() {
    let zeros = vec![0; 3 << 20];
    let limits = Limits {
        ratio_max: 10,
        ..Limits::default()
    };
    for archive in [
        zip(&[("zeros", &zeros), ("next", MARKER)]),
        tar(&[("a.gz", &gzip(&zeros)), ("next", MARKER)]),
        tar(&[("a.xz", &xz(&zeros)), ("next", MARKER)]),
        pdf(&[("/Filter /FlateDecode", &zlib(&zeros)), ("", MARKER)]),
    ] {
        let walked = walked_with(&archive, &limits);
        assert_eq!(walked.kind(), Some(Ratio), "{:?}", walked.incomplete());
        assert_eq!(walked.marked().len(), 1, "the sibling is shown");
        let longest = walked.members.iter().map(|(_, bytes)| bytes.len()).max();
        assert!(
            longest > Some(1 << 20) && longest < Some(2 << 20),
            "{longest:?}"
        );
    }
    let small = vec![0; 1 << 20];
    assert_eq!(
        walked_with(&gzip(&small), &limits).kind(),
        None,
        "up to 1 MiB nobody asks"
    );
}

#[test]
fn window_bytes() {
    let wants_16_mib = xz_with_dictionary(&planted(1000), 16 << 20);
    let limits = |window_bytes_max| Limits {
        window_bytes_max,
        ..Limits::default()
    };
    assert_eq!(
        walked_with(&wants_16_mib, &limits(8 << 20)).kind(),
        Some(Unsupported)
    );
    assert_eq!(walked_with(&wants_16_mib, &limits(64 << 20)).kind(), None);
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("memory");
    encoder.window_log(24).expect("16 MiB");
    std::io::Write::write_all(&mut encoder, &planted(17 << 20)).expect("memory");
    let zstd = encoder.finish().expect("memory");
    assert_eq!(
        walked_with(&zstd, &limits(8 << 20)).kind(),
        Some(Unsupported)
    );
    assert_eq!(walked_with(&zstd, &limits(16 << 20)).kind(), None);
    let sevenz = sevenz(&[&[("x", &planted(1000))]]);
    assert_eq!(
        walked_with(&sevenz, &limits(1 << 20)).kind(),
        Some(Unsupported)
    );
}

#[test]
fn the_first_problem_is_kept() {
    let broken_and_deep = zip(&[
        ("a.zip", &zip_encrypted(&[("x", b"1")])),
        ("b.gz", &gzip(b"1")[..12]),
    ]);
    let walked = walked(&broken_and_deep);
    assert_eq!(walked.incomplete_path().as_deref(), Some("a.zip > x"));
}

#[test]
fn the_visitor_can_end_it() {
    let archive = zip(&[("a", b"1"), ("b", b"2"), ("c", b"3")]);
    let mut seen = 0;
    let budget = &mut Budget::unlimited();
    let summary = unpack::walk(&archive, None, &Limits::default(), budget, &mut |_| {
        seen += 1;
        if seen == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!((seen, summary.members, summary.end), (2, 2, End::Visitor));
    assert!(!summary.is_complete());
}

#[test]
fn a_panic_of_the_visitor_goes_through() {
    let archive = zip(&[("a.zip", &zip(&[("b", b"1")]))]);
    let outcome = std::panic::catch_unwind(|| {
        let budget = &mut Budget::unlimited();
        unpack::walk(&archive, None, &Limits::default(), budget, &mut |member| {
            assert!(member.path.len() < 2, "deep enough");
            ControlFlow::Continue(())
        })
    });
    let panic = outcome.expect_err("the visitor panicked");
    assert!(
        panic
            .downcast_ref::<String>()
            .is_some_and(|text| text.contains("deep enough"))
            || panic
                .downcast_ref::<&str>()
                .is_some_and(|text| text.contains("deep enough"))
    );
}

/// Every kind of container stops soon after the caller wants it to.
#[test]
fn the_budget_ends_it() {
    let megabytes = noise(3 << 20);
    let mszip = cab::CompressionType::MsZip;
    for archive in [
        gzip(&megabytes),
        bzip2(&megabytes),
        xz(&megabytes),
        zstd(&megabytes),
        zip(&[("x", &megabytes)]),
        tar(&[("x", &megabytes)]),
        sevenz(&[&[("x", &megabytes)]]),
        cab(&[&[("x", &megabytes)]], mszip),
        ole(&[("/x", &megabytes)]),
        pdf(&[("/Filter /FlateDecode", &zlib(&megabytes))]),
        mail(&[("x", &megabytes)]),
    ] {
        let questions = Cell::new(0);
        let should_stop = || {
            questions.set(questions.get() + 1);
            questions.get() > 4
        };
        let mut budget = Budget::new(&should_stop);
        let mut shown = 0;
        let summary = unpack::walk(&archive, None, &Limits::default(), &mut budget, &mut |_| {
            shown += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(summary.end, End::Budget, "{:?}", &archive[..8]);
        assert_eq!(summary.incomplete, None, "time is not the file's fault");
        assert!(!summary.is_complete());
        assert_eq!(summary.members, shown);
        assert_eq!(questions.get(), 5, "asked no more once it said stop");
    }
}
