//! A bounded queue of two urgencies with many takers.
//!
//! Whoever puts wakes a taker after the lock is given back. A channel that selects between two
//! queues wakes under its lock: on a guest with one processor the taker runs at once, runs into that
//! lock and sleeps again (8 µs of an open, measured).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use super::content::lock;

/// Both ends of a queue.
pub(crate) struct Lanes<T>(Arc<Shared<T>>);

struct Shared<T> {
    waiting: Mutex<Waiting<T>>,
    came: Condvar,
    len_max: usize,
}

struct Waiting<T> {
    urgent: VecDeque<T>,
    others: VecDeque<T>,
    /// Takers that are to end.
    ends: usize,
    /// Takers that sleep.
    idle: usize,
}

impl<T> Clone for Lanes<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Lanes<T> {
    /// Of at most `len_max` tasks of each urgency.
    pub(super) fn new(len_max: usize) -> Self {
        Self(Arc::new(Shared {
            waiting: Mutex::new(Waiting {
                urgent: VecDeque::new(),
                others: VecDeque::new(),
                ends: 0,
                idle: 0,
            }),
            came: Condvar::new(),
            len_max,
        }))
    }

    /// Puts a task behind those of its urgency.
    ///
    /// # Errors
    /// The task, where there is no room for it.
    pub(super) fn put(&self, is_urgent: bool, task: T) -> Result<(), T> {
        let mut waiting = lock(&self.0.waiting);
        let lane = if is_urgent {
            &mut waiting.urgent
        } else {
            &mut waiting.others
        };
        if lane.len() >= self.0.len_max {
            return Err(task);
        }
        lane.push_back(task);
        let has_idle = waiting.idle > 0;
        drop(waiting);
        if has_idle {
            self.0.came.notify_one();
        }
        Ok(())
    }

    /// Ends so many takers, after what is urgent.
    pub(super) fn end(&self, takers: usize) {
        lock(&self.0.waiting).ends += takers;
        self.0.came.notify_all();
    }

    /// The next task, urgent ones first; waits for one. `None` when this taker shall end.
    pub(super) fn take(&self) -> Option<T> {
        let mut waiting = lock(&self.0.waiting);
        loop {
            if let Some(task) = waiting.urgent.pop_front() {
                return Some(task);
            }
            if waiting.ends > 0 {
                waiting.ends -= 1;
                return None;
            }
            if let Some(task) = waiting.others.pop_front() {
                return Some(task);
            }
            waiting.idle += 1;
            waiting = self
                .0
                .came
                .wait(waiting)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_ones_come_first_and_each_lane_is_bounded() {
        let lanes = Lanes::new(2);
        for n in 0..2 {
            lanes.put(false, n).unwrap();
            lanes.put(true, 10 + n).unwrap();
        }
        assert_eq!(lanes.put(true, 12), Err(12));
        assert_eq!(lanes.put(false, 2), Err(2));
        let taken: Vec<_> = std::iter::from_fn(|| lanes.take()).take(4).collect();
        assert_eq!(taken, [10, 11, 0, 1]);
    }

    #[test]
    fn takers_end_after_what_is_urgent() {
        let lanes = Lanes::new(8);
        lanes.put(false, 1).unwrap();
        lanes.put(true, 2).unwrap();
        lanes.end(1);
        assert_eq!((lanes.take(), lanes.take()), (Some(2), None));
        assert_eq!(lanes.take(), Some(1), "another taker goes on");
    }

    #[test]
    fn each_task_is_taken_once_by_takers_that_slept() {
        const TASKS: usize = 10_000;
        let lanes = Lanes::new(16);
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let lanes = lanes.clone();
                std::thread::spawn(move || std::iter::from_fn(|| lanes.take()).sum::<usize>())
            })
            .collect();
        for n in 0..TASKS {
            let mut task = n;
            while let Err(full) = lanes.put(n % 3 == 0, task) {
                task = full;
                std::thread::yield_now();
            }
        }
        // Takers end before what is not urgent.
        while !lock(&lanes.0.waiting).others.is_empty() {
            std::thread::yield_now();
        }
        lanes.end(takers.len());
        let sum: usize = takers.into_iter().map(|it| it.join().unwrap()).sum();
        assert_eq!(sum, TASKS * (TASKS - 1) / 2);
    }
}
