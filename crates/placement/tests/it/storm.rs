//! Storm control: budgets are never exceeded, deadlines are met.

use std::time::Duration;

use placement::{
    Admission, Begin, Followed, HostId, Job, Lease, Place, Refused, Resource, Resources,
    StormPolicy, VmId, WorkKind,
};
use proptest::prelude::*;

use crate::world::at;

fn job(vm: u64, host: u64, cpu_milli: u32, takes_s: u64, window: (u64, u64)) -> Job {
    Job {
        yields: false,
        vm: VmId(vm),
        host: HostId(host),
        datastore: Some(host / 4),
        link: None,
        kind: WorkKind::Sweep,
        needs: Resources {
            cpu_milli,
            read_mib_s: 50,
            link_mib_s: 0,
        },
        takes: at(takes_s),
        not_before: at(window.0),
        deadline: at(window.1),
    }
}

#[test]
fn a_fleet_is_spread_over_its_window() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let window = (0, 4 * 3600);
    let mut begins: Vec<Duration> = (0..200)
        .map(|vm| {
            admission
                .reserve(at(0), job(vm, 0, 500, 60, window))
                .unwrap()
                .begins
        })
        .collect();
    begins.sort();
    // Not all in one quarter.
    for quarter in 0..4 {
        let (from, to) = (at(quarter * 3600), at((quarter + 1) * 3600));
        let here = begins.iter().filter(|it| (from..to).contains(it)).count();
        assert!((20..=80).contains(&here), "{here} in quarter {quarter}");
    }
}

#[test]
fn what_yields_comes_after_the_others_and_in_time() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let window = (0, 600);
    let polite = |vm| Job {
        yields: true,
        ..job(vm, 0, 500, 60, window)
    };
    // Four at once have room on a host; those that yield ask first.
    let late: Vec<Lease> = (0..8)
        .map(|vm| admission.reserve(at(0), polite(vm)).unwrap())
        .collect();
    assert_eq!(late[0].ends, at(600), "as late as may be");
    assert!(late.iter().all(|lease| lease.ends <= at(600)));
    let first = late.iter().map(|lease| lease.begins).min();
    assert_eq!(first, Some(at(480)), "no earlier than it must");
    for vm in 8..16 {
        let lease = admission
            .reserve(at(0), job(vm, 0, 500, 60, window))
            .unwrap();
        assert!(lease.ends <= at(480), "{lease:?}");
    }
    // Where all is taken it is refused, as anybody.
    let all = Job {
        yields: true,
        ..job(20, 1, 2000, 600, window)
    };
    assert_eq!(admission.reserve(at(0), all).unwrap().begins, at(0));
    let refused = admission.reserve(
        at(0),
        Job {
            vm: VmId(21),
            ..all
        },
    );
    assert_eq!(refused, Err(Refused::Full { by: Some(at(1200)) }));
}

#[test]
fn what_does_not_fit_is_told_by_when_it_would() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let all = job(1, 0, 2000, 100, (0, 100));
    let lease = admission.reserve(at(0), all).unwrap();
    assert_eq!((lease.begins, lease.ends), (at(0), at(100)));
    let refused = admission.reserve(at(0), job(2, 0, 1000, 100, (0, 100)));
    assert_eq!(refused, Err(Refused::Full { by: Some(at(200)) }));
    assert!(
        admission
            .reserve(at(0), job(2, 0, 1000, 100, (0, 200)))
            .is_ok()
    );
    assert!(
        admission
            .reserve(at(0), job(3, 1, 1000, 100, (0, 100)))
            .is_ok()
    );
    let refused = |job| admission.reserve(at(0), job).unwrap_err();
    let mut refused = refused;
    assert_eq!(refused(job(4, 2, 2001, 10, (0, 100))), Refused::TooMuch);
    assert_eq!(refused(job(4, 2, 1, 101, (0, 100))), Refused::Window);
    assert_eq!(refused(job(4, 2, 1, 50_000, (0, 90_000))), Refused::TooLong);
}

#[test]
fn work_begins_at_its_time_and_gives_back_what_it_did_not_need() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let lease = admission
        .reserve(at(0), job(1, 0, 2000, 100, (50, 150)))
        .unwrap();
    assert_eq!(
        admission.begin(at(0), lease.id),
        Begin::NotYet { at: at(50) }
    );
    assert_eq!(
        admission.begin(at(50), lease.id),
        Begin::Go { until: at(150) }
    );
    admission.release(at(60), lease.id);
    assert_eq!(admission.begin(at(61), lease.id), Begin::Over);
    let second = admission
        .reserve(at(60), job(2, 0, 2000, 80, (60, 140)))
        .unwrap();
    assert_eq!(second.begins, at(60));
}

#[test]
fn a_boot_storm_puts_work_off_unless_its_deadline_would_be_missed() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let patient = admission
        .reserve(at(0), job(1, 0, 500, 60, (0, 1000)))
        .unwrap();
    let urgent = admission
        .reserve(at(0), job(2, 0, 500, 60, (0, 60)))
        .unwrap();
    let begins = patient.begins;
    admission.hold(HostId(0), at(500));
    assert_eq!(
        admission.begin(at(0), urgent.id),
        Begin::Go { until: at(60) }
    );
    if begins < at(500) {
        let later = admission.begin(begins, patient.id);
        let Begin::NotYet { at: later } = later else {
            panic!("{later:?}");
        };
        assert!(later >= at(500) && later + at(60) <= at(1000));
    }
}

#[test]
fn nothing_begins_before_what_an_earlier_term_gave_is_over() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 2);
    admission.hold_all(at(100));
    for vm in 0..4 {
        let lease = admission
            .reserve(at(0), job(vm, 0, 500, 60, (0, 160)))
            .unwrap();
        assert_eq!(lease.begins, at(100));
    }
    let hasty = admission.reserve(at(0), job(9, 1, 500, 60, (0, 150)));
    assert_eq!(hasty, Err(Refused::Full { by: Some(at(160)) }));
    let late = admission.reserve(at(0), job(9, 0, 500, 60, (0, 200)));
    assert_eq!(late, Err(Refused::Full { by: Some(at(220)) }));
    assert!(
        admission
            .reserve(at(200), job(9, 1, 500, 60, (200, 260)))
            .is_ok()
    );
}

#[test]
fn there_are_no_more_leases_than_may_be() {
    let policy = StormPolicy {
        leases_max: 3,
        ..StormPolicy::default()
    };
    let mut admission = Admission::new(policy, 1, 1);
    for vm in 0..3 {
        admission
            .reserve(at(0), job(vm, vm, 10, 10, (0, 100)))
            .unwrap();
    }
    let refused = admission.reserve(at(0), job(9, 9, 10, 10, (0, 100)));
    assert_eq!(refused, Err(Refused::TooMany));
    assert!(
        admission
            .reserve(at(100), job(9, 9, 10, 10, (100, 200)))
            .is_ok()
    );
}

fn place(host: u64) -> Place {
    Place {
        host: HostId(host),
        datastore: Some(host / 4),
        link: None,
    }
}

/// What is reserved of a host's processors.
fn cpu(admission: &Admission, host: u64, seconds: u64) -> u32 {
    let (used, _) = admission.reserved(Resource::Host(HostId(host)), at(seconds));
    used.cpu_milli
}

#[test]
fn a_lease_follows_its_vm_and_leaves_nothing_behind() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let lease = admission
        .reserve(at(0), job(1, 0, 1500, 100, (0, 100)))
        .unwrap();
    assert_eq!(
        admission.begin(at(0), lease.id),
        Begin::Go { until: at(100) }
    );
    assert_eq!(admission.follow(at(50), lease.id, place(1)), Followed::Kept);
    assert_eq!((cpu(&admission, 0, 50), cpu(&admission, 1, 50)), (0, 1500));
    assert_eq!((cpu(&admission, 0, 99), cpu(&admission, 1, 99)), (0, 1500));
    assert_eq!(
        admission.begin(at(51), lease.id),
        Begin::Go { until: at(100) }
    );
    admission.release(at(60), lease.id);
    assert_eq!(cpu(&admission, 1, 60), 0);
}

#[test]
fn work_that_has_begun_ends_where_there_is_no_room_for_it() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let mut begun = |vm, host| {
        let lease = admission
            .reserve(at(0), job(vm, host, 1500, 100, (0, 100)))
            .unwrap();
        admission.begin(at(0), lease.id);
        lease.id
    };
    let (moves, stays) = (begun(1, 0), begun(2, 1));
    assert_eq!(admission.follow(at(50), moves, place(1)), Followed::Over);
    assert_eq!((cpu(&admission, 0, 50), cpu(&admission, 1, 50)), (0, 1500));
    assert_eq!(admission.begin(at(50), moves), Begin::Over);
    assert!(admission.lease(stays).is_some());
}

#[test]
fn what_has_not_begun_is_put_off_where_there_is_no_room_yet() {
    let mut admission = Admission::new(StormPolicy::default(), 1, 1);
    let mut reserve = |vm, host, window| {
        let lease = admission.reserve(at(0), job(vm, host, 1500, 100, window));
        lease.unwrap()
    };
    let _there = reserve(2, 1, (0, 100));
    let patient = reserve(1, 0, (0, 100));
    let hasty = reserve(3, 2, (0, 100));
    // A window of its own that is longer.
    let late = reserve(4, 0, (100, 400));
    assert_eq!(
        admission.follow(at(0), patient.id, place(1)),
        Followed::Over,
        "its deadline cannot be met there"
    );
    assert_eq!(admission.follow(at(0), hasty.id, place(0)), Followed::Kept);
    let _full = admission
        .reserve(at(0), job(5, 1, 1500, 100, (100, 200)))
        .unwrap();
    assert_eq!(admission.follow(at(0), late.id, place(1)), Followed::Kept);
    let moved = admission.lease(late.id).unwrap();
    assert!(
        moved.begins >= at(200) && moved.ends <= at(400),
        "{moved:?}"
    );
    assert_eq!(moved.ends, moved.begins + at(100));
}

#[derive(Debug, Clone)]
enum Step {
    Reserve(u64, u64, u32, u64, u64, u64),
    Begin(usize),
    Release(usize),
    Hold(u64, u64),
    Follow(usize, u64),
    Sleep(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..50_u64, 0..6_u64, 1..2000_u32, 1..200_u64, 0..300_u64, 1..900_u64)
            .prop_map(|(vm, host, cpu, takes, after, window)| {
                Step::Reserve(vm, host, cpu, takes, after, window)
            }),
        3 => any::<usize>().prop_map(Step::Begin),
        2 => any::<usize>().prop_map(Step::Release),
        1 => (0..6_u64, 0..500_u64).prop_map(|(host, time)| Step::Hold(host, time)),
        3 => (any::<usize>(), 0..6_u64).prop_map(|(which, host)| Step::Follow(which, host)),
        2 => (0..90_u64).prop_map(Step::Sleep),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What leases use of a host together never exceeds its budget, at any step.
fn check(admission: &mut Admission, now: Duration) {
    let leases = admission.leases(now);
    let policy = StormPolicy::default();
    for lease in &leases {
        assert!(lease.ends <= lease.job.deadline, "{lease:?}");
        assert!(lease.begins >= lease.job.not_before);
        let moment = lease.begins.max(now);
        let at_once = |other: &&Lease| other.begins <= moment && moment < other.ends;
        let on_host = |other: &&Lease| other.job.host == lease.job.host;
        let with: Vec<_> = leases.iter().filter(at_once).collect();
        let cpu: u32 = with
            .iter()
            .copied()
            .filter(on_host)
            .map(|it| it.job.needs.cpu_milli)
            .sum();
        assert!(cpu <= policy.host.cpu_milli, "{cpu}");
        let store = |other: &&Lease| other.job.datastore == lease.job.datastore;
        let reads: u32 = with
            .iter()
            .copied()
            .filter(store)
            .map(|it| it.job.needs.read_mib_s)
            .sum();
        assert!(reads <= policy.datastore_read_mib_s, "{reads}");
        let (used, limit) = admission.reserved(Resource::Host(lease.job.host), moment);
        assert!(used.cpu_milli <= limit.cpu_milli, "{used:?}");
        assert_eq!(used.cpu_milli, cpu, "what is booked is what is out");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn budgets_hold_and_deadlines_are_met(steps in steps()) {
        let mut admission = Admission::new(StormPolicy::default(), 3, 1);
        let (mut clock, mut given) = (0, Vec::new());
        for step in steps {
            let now = at(clock);
            match step {
                Step::Reserve(vm, host, cpu, takes, after, window) => {
                    let window = (clock + after, clock + after + window);
                    let reserved = admission.reserve(now, job(vm, host, cpu, takes, window));
                    given.extend(reserved.ok());
                }
                Step::Begin(which) if !given.is_empty() => {
                    let lease: &Lease = &given[which % given.len()];
                    if let Begin::Go { until } = admission.begin(now, lease.id) {
                        prop_assert!(until <= lease.job.deadline && until > now);
                    }
                }
                Step::Release(which) if !given.is_empty() => {
                    admission.release(now, given[which % given.len()].id);
                }
                Step::Follow(which, host) if !given.is_empty() => {
                    let id = given[which % given.len()].id;
                    let before = admission.lease(id).copied();
                    let followed = admission.follow(now, id, place(host));
                    let lease = admission.lease(id).copied();
                    prop_assert_eq!(followed == Followed::Kept, lease.is_some());
                    if let (Some(before), Some(lease)) = (before, lease) {
                        prop_assert_eq!(lease.job.place(), place(host));
                        // Who works has the same time left.
                        prop_assert!(!before.has_begun || lease.ends == before.ends);
                        prop_assert_eq!(before.has_begun, lease.has_begun);
                    }
                }
                Step::Hold(host, time) => admission.hold(HostId(host), at(clock + time)),
                Step::Sleep(time) => clock += time,
                Step::Begin(_) | Step::Release(_) | Step::Follow(..) => {}
            }
            check(&mut admission, at(clock));
        }
    }
}
