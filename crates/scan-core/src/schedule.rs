//! Who is served next: strict priorities, guests in turn inside one, bounded queues.

use std::collections::{HashMap, VecDeque};

use model::GuestId;

use crate::Refusal;

/// Number of priorities; 0 is served first.
pub const PRIORITIES: usize = 3;

/// The limits of a [`Scheduler`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Jobs waiting, of all guests.
    pub queue_len_max: usize,
    /// Jobs waiting, of one guest.
    pub guest_queue_len_max: usize,
    /// Jobs running at once.
    pub running_max: usize,
    /// Of those, places that only priority 0 may take, so that long on-demand scans never hold
    /// every engine while a process waits for its file. At least one place is always open to all.
    pub reserved_for_openers: usize,
    /// Jobs of one guest running at once, so that it never holds every engine while others wait.
    /// At least one.
    pub guest_running_max: usize,
}

/// Names a job in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(u64);

/// A job that did not fit, given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused<J> {
    /// The limit.
    pub limit: Refusal,
    /// The job.
    pub job: J,
}

/// A place among the running; give it back with [`Scheduler::done`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is not given back is lost for ever"]
pub struct Slot {
    priority: usize,
    guest: GuestId,
}

/// A job whose turn has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Started<J> {
    /// Which.
    pub id: JobId,
    /// Whose.
    pub guest: GuestId,
    /// Its place.
    pub slot: Slot,
    /// What to do.
    pub job: J,
}

/// The queue. Jobs of one guest and one priority run in their order.
#[derive(Debug)]
pub struct Scheduler<J> {
    limits: QueueLimits,
    levels: [Level<J>; PRIORITIES],
    queued: usize,
    queued_by_guest: HashMap<GuestId, usize>,
    running: [usize; PRIORITIES],
    running_by_guest: HashMap<GuestId, usize>,
    next_id: u64,
}

/// One priority. A guest is in `turn` exactly while its queue is not empty.
#[derive(Debug)]
struct Level<J> {
    turn: VecDeque<GuestId>,
    queues: HashMap<GuestId, VecDeque<(JobId, J)>>,
}

impl<J> Level<J> {
    fn push(&mut self, guest: GuestId, id: JobId, job: J) {
        let queue = self.queues.entry(guest).or_default();
        if queue.is_empty() {
            self.turn.push_back(guest);
        }
        queue.push_back((id, job));
    }

    /// The next job of a guest that may run one; whoever may not keeps its turn.
    fn pop(&mut self, may_run: impl Fn(&GuestId) -> bool) -> Option<(GuestId, JobId, J)> {
        let at = self.turn.iter().position(may_run)?;
        let guest = self.turn.remove(at)?;
        let queue = self.queues.get_mut(&guest)?;
        let (id, job) = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&guest);
        } else {
            self.turn.push_back(guest);
        }
        Some((guest, id, job))
    }

    fn remove(&mut self, guest: GuestId, id: JobId) -> Option<J> {
        let queue = self.queues.get_mut(&guest)?;
        let at = queue.iter().position(|(queued, _)| *queued == id)?;
        let (_, job) = queue.remove(at)?;
        if queue.is_empty() {
            self.queues.remove(&guest);
            self.turn.retain(|waiting| *waiting != guest);
        }
        Some(job)
    }
}

impl<J> Scheduler<J> {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            levels: std::array::from_fn(|_| Level {
                turn: VecDeque::new(),
                queues: HashMap::new(),
            }),
            queued: 0,
            queued_by_guest: HashMap::new(),
            running: [0; PRIORITIES],
            running_by_guest: HashMap::new(),
            next_id: 0,
        }
    }

    /// Changes the limits; what waits and runs stays.
    pub fn set_limits(&mut self, limits: QueueLimits) {
        self.limits = limits;
    }

    /// Queues a job. A priority beyond the last counts as the last.
    ///
    /// # Errors
    /// The job and the limit it met.
    pub fn push(&mut self, guest: GuestId, priority: u8, job: J) -> Result<JobId, Refused<J>> {
        let of_guest = self.queued_by_guest.get(&guest).copied().unwrap_or(0);
        let limit = if of_guest >= self.limits.guest_queue_len_max {
            Some(Refusal::GuestQueue)
        } else if self.queued >= self.limits.queue_len_max {
            Some(Refusal::Queue)
        } else {
            None
        };
        if let Some(limit) = limit {
            return Err(Refused { limit, job });
        }
        let id = JobId(self.next_id);
        self.next_id += 1;
        self.queued += 1;
        self.queued_by_guest.insert(guest, of_guest + 1);
        self.levels[index(priority)].push(guest, id, job);
        Ok(id)
    }

    /// Moves a waiting job to a better priority, because someone more urgent waits for it now.
    /// False where it does not wait there (it runs, or is done).
    pub fn raise(&mut self, guest: GuestId, id: JobId, from: u8, to: u8) -> bool {
        let (from, to) = (index(from), index(to));
        if to >= from {
            return false;
        }
        let Some(job) = self.levels[from].remove(guest, id) else {
            return false;
        };
        self.levels[to].push(guest, id, job);
        true
    }

    /// The next job that may run now.
    pub fn start(&mut self) -> Option<Started<J>> {
        let all: usize = self.running.iter().sum();
        if all >= self.limits.running_max {
            return None;
        }
        let not_openers = all - self.running[0];
        let open_to_all = self
            .limits
            .running_max
            .saturating_sub(self.limits.reserved_for_openers)
            .max(1);
        let levels = if not_openers < open_to_all {
            PRIORITIES
        } else {
            1
        };
        let guest_max = self.limits.guest_running_max.max(1);
        let running = &self.running_by_guest;
        let may_run = |guest: &GuestId| running.get(guest).is_none_or(|held| *held < guest_max);
        let (priority, (guest, id, job)) = self.levels[..levels]
            .iter_mut()
            .enumerate()
            .find_map(|(priority, level)| Some((priority, level.pop(may_run)?)))?;
        self.queued -= 1;
        forget_one(&mut self.queued_by_guest, guest);
        self.running[priority] += 1;
        *self.running_by_guest.entry(guest).or_default() += 1;
        let slot = Slot { priority, guest };
        Some(Started {
            id,
            guest,
            slot,
            job,
        })
    }

    /// A job ended; its place is free.
    pub fn done(&mut self, slot: Slot) {
        self.running[slot.priority] = self.running[slot.priority].saturating_sub(1);
        forget_one(&mut self.running_by_guest, slot.guest);
    }

    /// Jobs waiting, by priority.
    #[must_use]
    pub fn waiting(&self) -> [usize; PRIORITIES] {
        std::array::from_fn(|i| self.levels[i].queues.values().map(VecDeque::len).sum())
    }

    /// Jobs running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.iter().sum()
    }
}

/// Counts one less; guests with none are not kept.
fn forget_one(counts: &mut HashMap<GuestId, usize>, guest: GuestId) {
    if let Some(count) = counts.get_mut(&guest) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&guest);
        }
    }
}

fn index(priority: u8) -> usize {
    usize::from(priority).min(PRIORITIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: QueueLimits = QueueLimits {
        queue_len_max: 12,
        guest_queue_len_max: 5,
        running_max: 3,
        reserved_for_openers: 1,
        guest_running_max: 2,
    };

    fn guest(n: u8) -> GuestId {
        GuestId([n; 16])
    }

    #[test]
    fn guests_take_turns_and_openers_go_first() {
        let mut queue = Scheduler::new(QueueLimits {
            running_max: 100,
            reserved_for_openers: 0,
            guest_running_max: 100,
            ..LIMITS
        });
        for (who, priority, job) in [
            (1, 1, "a1"),
            (1, 1, "a2"),
            (1, 1, "a3"),
            (2, 1, "b1"),
            (3, 0, "c1"),
            (2, 2, "b2"),
        ] {
            queue.push(guest(who), priority, job).unwrap();
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.start().map(|s| s.job)).collect();
        assert_eq!(order, ["c1", "a1", "b1", "a2", "a3", "b2"]);
    }

    #[test]
    fn a_place_is_kept_for_openers() {
        let mut queue = Scheduler::new(LIMITS);
        for job in 0..4 {
            queue.push(guest(1), 2, job).unwrap();
        }
        assert!(queue.start().is_some() && queue.start().is_some());
        queue.push(guest(2), 2, 8).unwrap();
        assert_eq!(queue.start(), None, "the third place is for openers");
        queue.push(guest(2), 0, 9).unwrap();
        assert_eq!(queue.start().map(|s| s.job), Some(9));
        assert_eq!(queue.running(), LIMITS.running_max);
    }

    #[test]
    fn one_place_serves_everybody() {
        let mut queue = Scheduler::new(QueueLimits {
            running_max: 1,
            reserved_for_openers: 5,
            ..LIMITS
        });
        queue.push(guest(1), 2, ()).unwrap();
        assert!(queue.start().is_some());
    }

    #[test]
    fn one_guest_never_holds_every_place() {
        let mut queue = Scheduler::new(LIMITS);
        for job in ["a1", "a2", "a3"] {
            queue.push(guest(1), 0, job).unwrap();
        }
        let first = queue.start().unwrap();
        assert!(queue.start().is_some());
        assert_eq!(
            queue.start(),
            None,
            "a place is left, but not for this guest"
        );
        queue.push(guest(2), 0, "b1").unwrap();
        let other = queue.start().unwrap();
        assert_eq!((other.guest, other.job), (guest(2), "b1"));
        queue.done(other.slot);
        assert_eq!(queue.start(), None);
        queue.done(first.slot);
        assert_eq!(queue.start().map(|s| s.job), Some("a3"));
    }

    #[test]
    fn a_guest_that_may_run_nothing_more_may_always_run_one() {
        let mut queue = Scheduler::new(QueueLimits {
            guest_running_max: 0,
            ..LIMITS
        });
        queue.push(guest(1), 0, ()).unwrap();
        queue.push(guest(1), 0, ()).unwrap();
        assert!(queue.start().is_some());
        assert_eq!(queue.start(), None);
    }

    #[test]
    fn a_raised_job_overtakes() {
        let mut queue = Scheduler::new(LIMITS);
        queue.push(guest(1), 2, "first").unwrap();
        let late = queue.push(guest(1), 2, "late").unwrap();
        assert!(queue.raise(guest(1), late, 2, 0));
        assert!(!queue.raise(guest(1), late, 2, 0), "it is no longer there");
        assert_eq!(queue.start().map(|s| s.job), Some("late"));
        assert_eq!(queue.start().map(|s| s.job), Some("first"));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8, u8),
        Start,
        Done,
        Raise(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..4u8, 0..4u8).prop_map(|(g, p)| Step::Push(g, p)),
            3 => Just(Step::Start),
            3 => Just(Step::Done),
            1 => (0..50usize).prop_map(Step::Raise),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn no_job_is_lost_and_every_bound_holds(steps in steps()) {
            let mut queue = Scheduler::new(LIMITS);
            let mut waiting: HashMap<u64, (u8, u8, JobId)> = HashMap::new();
            let mut slots: Vec<Slot> = Vec::new();
            let mut next = 0u64;
            for step in steps {
                match step {
                    Step::Push(who, priority) => {
                        next += 1;
                        let of_guest = waiting.values().filter(|w| w.0 == who).count();
                        match queue.push(guest(who), priority, next) {
                            Ok(id) => { waiting.insert(next, (who, priority, id)); }
                            Err(refused) => {
                                prop_assert_eq!(refused.job, next);
                                prop_assert!(of_guest >= LIMITS.guest_queue_len_max
                                    || waiting.len() >= LIMITS.queue_len_max);
                            }
                        }
                    }
                    Step::Start => {
                        if let Some(started) = queue.start() {
                            let known = waiting.remove(&started.job);
                            prop_assert!(known.is_some_and(|k| guest(k.0) == started.guest));
                            slots.push(started.slot);
                        }
                    }
                    Step::Done => {
                        if let Some(slot) = slots.pop() { queue.done(slot); }
                    }
                    Step::Raise(n) => {
                        let job = waiting.keys().copied().nth(n);
                        if let Some(entry) = job.and_then(|job| waiting.get_mut(&job)) {
                            let (who, priority, id) = *entry;
                            if queue.raise(guest(who), id, priority, 0) { entry.1 = 0; }
                        }
                    }
                }
                prop_assert_eq!(queue.waiting().iter().sum::<usize>(), waiting.len());
                prop_assert_eq!(queue.running(), slots.len());
                prop_assert!(slots.len() <= LIMITS.running_max);
                for slot in &slots {
                    let of_guest = slots.iter().filter(|s| s.guest == slot.guest).count();
                    prop_assert!(of_guest <= LIMITS.guest_running_max);
                }
                prop_assert!(waiting.len() <= LIMITS.queue_len_max);
            }
            while !waiting.is_empty() {
                slots.drain(..).for_each(|slot| queue.done(slot));
                let started = queue.start();
                prop_assert!(started.is_some(), "a waiting job must be served");
                if let Some(started) = started {
                    prop_assert!(waiting.remove(&started.job).is_some());
                    queue.done(started.slot);
                }
            }
        }

        #[test]
        fn backlogged_guests_share_evenly(lengths in proptest::collection::vec(1..30usize, 2..6)) {
            let mut queue = Scheduler::new(QueueLimits {
                queue_len_max: 1000, guest_queue_len_max: 1000, ..LIMITS
            });
            for (who, length) in (0u8..).zip(&lengths) {
                for job in 0..*length { queue.push(guest(who), 1, job).unwrap(); }
            }
            let mut served = vec![0usize; lengths.len()];
            while let Some(started) = queue.start() {
                let who = usize::from(started.guest.0[0]);
                prop_assert_eq!(started.job, served[who], "in order inside a guest");
                served[who] += 1;
                queue.done(started.slot);
                let most = served.iter().max().copied().unwrap_or(0);
                for (count, length) in served.iter().zip(&lengths) {
                    prop_assert!(*count == *length || count + 1 >= most);
                }
            }
            prop_assert_eq!(served, lengths);
        }
    }
}
