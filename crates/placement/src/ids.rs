//! Names that the caller hands out and never uses twice for different things.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A machine that runs VMs.
    HostId
}
id! {
    /// A virtual machine.
    VmId
}
id! {
    /// A scanning appliance.
    ApplianceId
}

/// Which of two lists for one VM is the newer one. The placer's term is its upper part, so that a
/// placer that took over outranks whatever its predecessor still sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    const TERM_SHIFT: u32 = 40;

    /// The epoch after this one, of a placer with this term.
    #[must_use]
    pub fn next(self, term: u32) -> Self {
        // Terms use 24 bits: one takeover a second for half a year.
        let of_term = u64::from(term & 0x00ff_ffff) << Self::TERM_SHIFT;
        Self(self.0.saturating_add(1).max(of_term))
    }

    /// The term of the placer that made it.
    #[must_use]
    pub fn term(self) -> u32 {
        u32::try_from(self.0 >> Self::TERM_SHIFT).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sequence = self.0 & ((1 << Self::TERM_SHIFT) - 1);
        write!(f, "{}.{sequence}", self.term())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_term_outranks_any_number_of_earlier_lists() {
        let mut old = Epoch::default();
        for _ in 0..1000 {
            old = old.next(1);
        }
        let new = Epoch::default().next(2);
        assert!(new > old && new.term() == 2 && old.term() == 1);
        assert!(new.next(2) > new && new.next(1) > new);
        assert_eq!(new.to_string(), "2.0");
    }
}
