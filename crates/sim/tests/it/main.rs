//! Some hundreds of courses; `./x sim --seeds N` plays more.

const SEEDS: u64 = 300;

#[test]
fn nothing_breaks_whatever_happens() {
    let (mut moved, mut stopped, mut corrected) = (0, 0, 0);
    let (mut rekeyed, mut restored) = (0, 0);
    for seed in 0..SEEDS {
        match sim::run(seed) {
            Ok(outcome) => {
                moved += outcome.moves;
                stopped += outcome.stopped;
                corrected += outcome.corrected;
                rekeyed += outcome.rekeyed;
                restored += outcome.restored;
            }
            Err(broken) => panic!("seed {seed}: {broken}; again: ./x sim --from {seed} --seeds 1"),
        }
    }
    assert!(moved > SEEDS, "the courses move nobody");
    assert!(stopped > 0, "no turn was taken back");
    assert!(corrected > 0, "no lost move was found by measuring");
    assert!(rekeyed > SEEDS, "copies got no identity of their own");
    assert!(restored > SEEDS, "no machine was set back");
}

#[test]
fn a_seed_is_the_same_course_again() {
    for seed in [1, 17, 99] {
        assert_eq!(sim::run(seed), sim::run(seed));
    }
}
