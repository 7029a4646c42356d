//! What goes first.

use model::AccessClass;

/// Priority of a frame. Strict: a frame leaves only when nothing more urgent is queued. All
/// frames of one exchange have the same priority, so that they keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// The link's own frames, policy, orders, cancels: few and small.
    Control,
    /// A process waits for an open or an execution.
    Open,
    /// A writer closed a file; nobody waits.
    CloseWrite,
    /// Scans on demand, debts of the ledger.
    OnDemand,
}

impl Priority {
    /// All of them, most urgent first.
    pub const ALL: [Self; 4] = [Self::Control, Self::Open, Self::CloseWrite, Self::OnDemand];
}

impl From<AccessClass> for Priority {
    fn from(class: AccessClass) -> Self {
        match class {
            AccessClass::Exec | AccessClass::Open => Self::Open,
            AccessClass::CloseWrite => Self::CloseWrite,
            AccessClass::OnDemand | AccessClass::Ledger => Self::OnDemand,
        }
    }
}
