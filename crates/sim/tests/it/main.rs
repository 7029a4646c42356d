//! Some hundreds of courses; `./x sim --seeds N` plays more.

const SEEDS: u64 = 300;

#[test]
fn nothing_breaks_whatever_happens() {
    let mut moved = 0;
    for seed in 0..SEEDS {
        match sim::run(seed) {
            Ok(outcome) => moved += outcome.moves,
            Err(broken) => panic!("seed {seed}: {broken}; again: ./x sim --from {seed} --seeds 1"),
        }
    }
    assert!(moved > SEEDS, "the courses move nobody");
}

#[test]
fn a_seed_is_the_same_course_again() {
    for seed in [1, 17, 99] {
        assert_eq!(sim::run(seed), sim::run(seed));
    }
}
