//! Frames that wait to be sent, by priority. No I/O.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::Priority;

/// What may wait. Control frames get [`CONTROL_RESERVE_FRAMES`] more, so that a cancel or a pong
/// passes where checks no longer do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Bytes of frames besides file data.
    pub(crate) bytes_max: usize,
    /// Frames.
    pub(crate) frames_max: usize,
    /// Bytes of file data; exceeded by less than one frame.
    pub(crate) data_bytes_max: usize,
}

/// Control frames that may wait beyond `frames_max`.
pub(crate) const CONTROL_RESERVE_FRAMES: usize = 1024;

/// What the queue must know of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It begins an exchange.
    Opening,
    /// File data: counts against its own limit.
    Data,
    /// Anything else.
    Other,
}

/// One encoded frame.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The exchange it belongs to.
    pub(crate) request_id: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// Header and message.
    pub(crate) bytes: Bytes,
}

/// As much waits as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Waiting frames: the most urgent leaves first; within a priority the oldest.
#[derive(Debug)]
pub(crate) struct SendQueue {
    lanes: [VecDeque<Frame>; Priority::ALL.len()],
    room: Room,
    frames: usize,
    bytes: usize,
    data_bytes: usize,
}

impl SendQueue {
    pub(crate) fn new(room: Room) -> Self {
        Self {
            lanes: Default::default(),
            room,
            frames: 0,
            bytes: 0,
            data_bytes: 0,
        }
    }

    pub(crate) fn push(&mut self, priority: Priority, frame: Frame) -> Result<(), Full> {
        if !self.takes(priority, &frame) {
            return Err(Full);
        }
        self.count_in(&frame);
        self.lanes[priority as usize].push_back(frame);
        Ok(())
    }

    fn takes(&self, priority: Priority, frame: &Frame) -> bool {
        if frame.kind == Kind::Data {
            return self.data_bytes < self.room.data_bytes_max;
        }
        let reserve = match priority {
            Priority::Control => CONTROL_RESERVE_FRAMES,
            _ => 0,
        };
        // An empty queue takes any frame: each is bounded by the contract.
        self.frames < self.room.frames_max + reserve
            && (self.bytes == 0 || self.bytes + frame.bytes.len() <= self.room.bytes_max)
    }

    pub(crate) fn pop(&mut self) -> Option<Frame> {
        let frame = self.lanes.iter_mut().find_map(VecDeque::pop_front)?;
        self.count_out(&frame);
        Some(frame)
    }

    /// Takes out every frame of an exchange; says whether its opening was among them, that is,
    /// whether the other side has never heard of it.
    pub(crate) fn drop_exchange(&mut self, request_id: u64) -> bool {
        let mut unheard_of = false;
        for lane in 0..self.lanes.len() {
            let old = std::mem::take(&mut self.lanes[lane]);
            for frame in old {
                if frame.request_id == request_id {
                    self.count_out(&frame);
                    unheard_of |= frame.kind == Kind::Opening;
                } else {
                    self.lanes[lane].push_back(frame);
                }
            }
        }
        unheard_of
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    pub(crate) fn has_room_for_data(&self) -> bool {
        self.data_bytes < self.room.data_bytes_max
    }

    pub(crate) fn holds_data(&self) -> bool {
        self.data_bytes > 0
    }

    fn count_in(&mut self, frame: &Frame) {
        self.frames += 1;
        if frame.kind == Kind::Data {
            self.data_bytes += frame.bytes.len();
        } else {
            self.bytes += frame.bytes.len();
        }
    }

    fn count_out(&mut self, frame: &Frame) {
        self.frames -= 1;
        if frame.kind == Kind::Data {
            self.data_bytes -= frame.bytes.len();
        } else {
            self.bytes -= frame.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: Room = Room {
        bytes_max: 100,
        frames_max: 5,
        data_bytes_max: 50,
    };

    fn frame(request_id: u64, len: usize) -> Frame {
        Frame {
            request_id,
            kind: Kind::Opening,
            bytes: vec![0; len].into(),
        }
    }

    fn data(request_id: u64, len: usize) -> Frame {
        Frame {
            kind: Kind::Data,
            ..frame(request_id, len)
        }
    }

    #[test]
    fn the_most_urgent_leaves_first_and_equals_keep_their_order() {
        let mut queue = SendQueue::new(ROOM);
        queue.push(Priority::OnDemand, data(1, 10)).unwrap();
        queue.push(Priority::OnDemand, data(2, 10)).unwrap();
        queue.push(Priority::Open, frame(3, 10)).unwrap();
        queue.push(Priority::Control, frame(4, 10)).unwrap();
        queue.push(Priority::CloseWrite, frame(5, 10)).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|frame| frame.request_id)
            .collect();
        assert_eq!(order, [4, 3, 5, 1, 2]);
        assert!(queue.is_empty());
    }

    #[test]
    fn each_limit_holds() {
        let mut queue = SendQueue::new(ROOM);
        queue.push(Priority::Open, frame(1, 90)).unwrap();
        assert_eq!(queue.push(Priority::Open, frame(1, 11)), Err(Full), "bytes");
        queue.push(Priority::Open, frame(1, 10)).unwrap();

        let mut queue = SendQueue::new(ROOM);
        for _ in 0..ROOM.frames_max {
            queue.push(Priority::Open, frame(1, 1)).unwrap();
        }
        assert_eq!(queue.push(Priority::Open, frame(1, 1)), Err(Full), "frames");
        queue.push(Priority::Control, frame(1, 1)).unwrap();

        let mut queue = SendQueue::new(ROOM);
        queue.push(Priority::Open, data(1, 49)).unwrap();
        queue.push(Priority::Open, data(1, 49)).unwrap();
        assert_eq!(queue.push(Priority::Open, data(1, 1)), Err(Full), "data");
        queue.push(Priority::Open, frame(1, 100)).unwrap();
    }

    #[test]
    fn control_frames_have_their_limit_too() {
        let mut queue = SendQueue::new(ROOM);
        let taken = (0..10_000)
            .take_while(|_| queue.push(Priority::Control, frame(0, 0)).is_ok())
            .count();
        assert_eq!(taken, ROOM.frames_max + CONTROL_RESERVE_FRAMES);
    }

    #[test]
    fn an_exchange_is_taken_out_whole() {
        let mut queue = SendQueue::new(ROOM);
        queue.push(Priority::Open, frame(1, 10)).unwrap();
        queue.push(Priority::Open, data(3, 10)).unwrap();
        queue.push(Priority::Open, frame(5, 10)).unwrap();
        assert!(queue.drop_exchange(1), "its check had not left");
        assert!(!queue.drop_exchange(3), "only its data had not left");
        assert!(!queue.drop_exchange(7));
        assert_eq!(queue.pop().unwrap().request_id, 5);
        assert!(queue.is_empty() && !queue.holds_data());
    }

    proptest! {
        #[test]
        fn counts_are_exact(steps in prop::collection::vec((0..4usize, 0..40usize, 0..6u64, any::<bool>()), 0..60)) {
            let mut queue = SendQueue::new(ROOM);
            for (lane, len, id, is_data) in steps {
                let pushed = if is_data { data(id, len) } else { frame(id, len) };
                if queue.push(Priority::ALL[lane], pushed).is_err() {
                    queue.drop_exchange(id);
                    queue.pop();
                }
                let held = || queue.lanes.iter().flatten();
                let size = |want| held().filter(|f| (f.kind == Kind::Data) == want).map(|f| f.bytes.len()).sum::<usize>();
                prop_assert_eq!(queue.frames, held().count());
                prop_assert_eq!(queue.bytes, size(false));
                prop_assert_eq!(queue.data_bytes, size(true));
            }
        }
    }
}
