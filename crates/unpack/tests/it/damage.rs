//! Containers that end too early.

use unpack::Format;

use crate::fixtures::planted;
use crate::samples::samples;
use crate::walked::walked;

/// Cuts at every fiftieth of the length: no panic gets out, and where content is missing the
/// walk says so.
#[test]
fn cut_containers_are_never_complete() {
    for sample in samples(20_000) {
        let whole = walked(&sample.bytes);
        assert!(
            whole.summary.is_complete(),
            "{}: {:?}",
            sample.name,
            whole.incomplete()
        );
        for fiftieth in 0..50 {
            let cut = &sample.bytes[..sample.bytes.len() * fiftieth / 50];
            let walked = walked(cut);
            if Format::detect(cut) != Some(sample.format) {
                // What makes it a container is gone: the magic, or an ISO's first 32 KiB.
                continue;
            }
            let complete = walked.summary.is_complete();
            let detail = format!("{} cut at {fiftieth}/50", sample.name);
            // tar and ar end without a mark: cut between members, nothing shows. ISO and OLE end
            // with padding: cut there, nothing is missing.
            let nothing_cut = match sample.format {
                Format::Tar | Format::Ar => whole.members.starts_with(&walked.members),
                Format::Iso | Format::Ole => whole.members == walked.members,
                _ => false,
            };
            assert!(!complete || nothing_cut, "{detail}");
        }
    }
}

/// A detection in what is left of a cut member counts: the prefix is shown.
#[test]
fn the_start_of_a_cut_member_is_shown() {
    let front = [crate::fixtures::MARKER, planted(400_000).as_slice()].concat();
    for (what, packed) in [
        ("gzip", crate::fixtures::gzip(&front)),
        ("zstd", crate::fixtures::zstd(&front)),
        ("xz", crate::fixtures::xz(&front)),
        ("zip", crate::fixtures::zip(&[("a", &front)])),
        ("tar", crate::fixtures::tar(&[("a", &front)])),
        ("7z", crate::fixtures::sevenz(&[&[("a", &front)]])),
        ("mail", crate::handmade::mail(&[("a", &front)])),
    ] {
        let walked = walked(&packed[..packed.len() * 3 / 4]);
        let expected = usize::from(what != "7z");
        assert_eq!(
            walked.marked().len(),
            expected,
            "{what}: its directory is at its end"
        );
        assert!(!walked.summary.is_complete(), "{what}");
    }
}
