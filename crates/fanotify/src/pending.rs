//! Openers that more than one process knows of.
//!
//! The kernel takes an answer by descriptor *number* from any process that holds the group
//! (measured), and keeps the opener waiting as long as one does. So a second process can answer
//! for one that died, if it knows who waits. It learns that here, without being woken: whoever
//! implements [`Pending`] writes to memory that both share.

use std::fmt::Debug;

use crate::event::OpenKind;

/// What a second process needs to know. Called by the reader's thread and by whoever answers;
/// nothing here may block.
pub trait Pending: Debug + Send + Sync {
    /// Events are about to be read. Until [`idle`](Self::idle), the reader is at work.
    fn reading(&self);

    /// The events read have been handed on; the reader waits for more.
    fn idle(&self);

    /// An opener waits for the answer to this number.
    fn waits(&self, number: i32, kind: OpenKind, pid: i32);

    /// Asks for the right to answer this number. False: another process has answered it, so it
    /// must not be answered again: by then the number could be another opener's.
    fn claim(&self, number: i32) -> bool;

    /// The answer was given, or refused: the number may be closed and come again.
    fn settled(&self, number: i32);
}
