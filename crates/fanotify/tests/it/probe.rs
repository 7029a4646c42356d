//! The probe on real file systems.

use fanotify::probe::{FastPath, Finding, probe};

use crate::scratch::Scratch;

#[test]
fn every_fast_path_is_sound_on_this_kernels_local_file_systems() {
    for scratch in [
        Scratch::ext4(),
        Scratch::xfs(),
        Scratch::btrfs(),
        Scratch::tmpfs(),
    ] {
        let report = probe(&scratch.root());
        for (experiment, finding) in &report.findings {
            assert_eq!(*finding, Finding::Sound, "{}", experiment.claim);
        }
        for path in FastPath::ALL {
            assert_eq!(report.finding_of(path), Finding::Sound, "{path:?}");
        }
        let left: Vec<_> = std::fs::read_dir(scratch.root()).expect("listed").collect();
        let left = left.into_iter().flatten().map(|it| it.file_name());
        let left: Vec<_> = left.filter(|name| name != "lost+found").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

#[test]
fn what_cannot_be_tried_is_unknown() {
    let layers = Scratch::ext4();
    let overlay = Scratch::overlay(&layers);
    for directory in [overlay.root(), layers.path("missing")] {
        let report = probe(&directory);
        for path in FastPath::ALL {
            let finding = report.finding_of(path);
            assert!(
                matches!(finding, Finding::Unknown(_)),
                "{path:?}: {finding:?}"
            );
            assert!(!finding.why().is_empty());
        }
    }
}
