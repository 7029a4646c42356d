//! Files that wait for a place among those in flight.

use std::collections::VecDeque;

use crate::Ticket;

/// Priorities known: opens, closed writes, ledger. See `AccessClass::priority`.
const PRIORITIES: usize = 3;

/// First come, first served within a priority; bounded over all of them.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    lanes: [VecDeque<Ticket>; PRIORITIES],
}

fn lane(priority: u8) -> usize {
    usize::from(priority).min(PRIORITIES - 1)
}

impl WaitQueue {
    pub(crate) fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    pub(crate) fn push(&mut self, priority: u8, ticket: Ticket) {
        self.lanes[lane(priority)].push_back(ticket);
    }

    /// The next one of at least this urgency.
    pub(crate) fn pop(&mut self, least_priority: u8) -> Option<Ticket> {
        let lanes = &mut self.lanes[..=lane(least_priority)];
        lanes.iter_mut().find_map(VecDeque::pop_front)
    }

    /// The newest of the least urgent that are less urgent than `priority`: what is dropped
    /// when the queue is full.
    pub(crate) fn pop_less_urgent(&mut self, priority: u8) -> Option<Ticket> {
        let lanes = &mut self.lanes[lane(priority) + 1..];
        lanes.iter_mut().rev().find_map(VecDeque::pop_back)
    }

    pub(crate) fn remove(&mut self, priority: u8, ticket: Ticket) {
        self.lanes[lane(priority)].retain(|waiting| *waiting != ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_first_then_in_order() {
        let mut queue = WaitQueue::default();
        for (priority, ticket) in [(2, 1), (0, 2), (1, 3), (0, 4)] {
            queue.push(priority, Ticket(ticket));
        }
        assert_eq!(queue.pop_less_urgent(0), Some(Ticket(1)));
        assert_eq!(queue.pop(2), Some(Ticket(2)));
        assert_eq!(queue.pop(0), Some(Ticket(4)));
        assert_eq!(queue.pop(0), None);
        assert_eq!(queue.pop_less_urgent(1), None);
        assert_eq!(queue.pop(2), Some(Ticket(3)));
        assert_eq!(queue.len(), 0);
    }
}
