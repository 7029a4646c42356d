//! What an appliance decides about scanning, without I/O, clock or randomness: who is served
//! next ([`Scheduler`]), what fits ([`Budget`]), what several engines' findings amount to
//! ([`merge()`]), and under which key a verdict may be used again ([`CacheKey`]).

mod budget;
mod engine;
mod key;
mod merge;
mod schedule;

pub use budget::{Budget, BudgetLimits, Grant, Place, Refusal};
pub use engine::{
    Engine, EngineCounts, EngineFacts, Finding, PartialFuture, PartialStep, PartialTask,
    ScanFuture, Task,
};
pub use key::{CacheKey, Context, ContextClass, Settings, generation_in_force};
pub use merge::merge;
pub use schedule::{JobId, PRIORITIES, QueueLimits, Refused, Scheduler, Slot, Started};
