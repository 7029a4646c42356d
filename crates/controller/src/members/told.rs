//! Copies that were told to ask for identities of their own: written down, so that it counts at every
//! controller and after a restart.

use std::time::{Duration, SystemTime};

use fleet_core::CopyOf;
use model::{Machine, differ};
use pki::KeyId;

use super::records::{Member, ToldCopy, seconds};

/// A copy that was told may ask for so long: its appliance may not reach anybody for a while.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// One that is told again is written down again after this.
const AGAIN: Duration = Duration::from_secs(3600);
/// Of one member; the oldest is forgotten for the next.
const TOLD_MAX: usize = 16;

impl ToldCopy {
    /// It may still ask.
    pub(crate) fn is_open(&self, now: SystemTime) -> bool {
        self.is_within(LIFE, now)
    }

    fn is_within(&self, time: Duration, now: SystemTime) -> bool {
        seconds(now) < self.at_s.saturating_add(time.as_secs())
    }

    /// Whether a machine that asks, and has shown this key, may be the one that was told. Another
    /// SMBIOS UUID is another machine; what else may have changed since nobody knows.
    pub(crate) fn is(&self, key: Option<KeyId>, machine: &Machine) -> bool {
        self.key == key && !differ(self.machine.system_uuid, machine.system_uuid)
    }
}

/// The member after one of its copies was told; `None`: nothing changes.
pub(crate) fn told_with(member: &Member, copy: &CopyOf, now: SystemTime) -> Option<Member> {
    let told = ToldCopy {
        key: copy.key.map(KeyId),
        machine: Machine {
            macs: Vec::new(),
            ..copy.machine.clone()
        },
        at_s: seconds(now),
    };
    let is_it = |known: &ToldCopy| known.key == told.key && known.machine == told.machine;
    let mut known = member.told.iter();
    if known.any(|known| is_it(known) && known.is_within(AGAIN, now)) {
        return None;
    }
    let mut next = member.clone();
    next.told
        .retain(|known| !is_it(known) && known.is_open(now));
    let too_many = (next.told.len() + 1).saturating_sub(TOLD_MAX);
    next.told.drain(..too_many);
    next.told.push(told);
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::keys::tests::member;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn copy(uuid: u8) -> CopyOf {
        CopyOf {
            guest: member().id,
            key: Some([1; 16]),
            machine: Machine {
                system_uuid: Some([uuid; 16]),
                macs: vec![[uuid; 6]],
                ..Machine::default()
            },
        }
    }

    #[test]
    fn who_was_told_is_remembered_for_a_day_and_few_of_them() {
        let told = told_with(&member(), &copy(1), at(0)).unwrap();
        assert_eq!(told_with(&told, &copy(1), at(3599)), None, "no news");
        let again = told_with(&told, &copy(1), at(3600)).unwrap();
        assert_eq!(again.told.len(), 1);
        assert!(again.told[0].is_open(at(3600 + 86399)));
        assert!(!again.told[0].is_open(at(3600 + 86400)));
        let mut many = again;
        for uuid in 2..100 {
            many = told_with(&many, &copy(uuid), at(4000)).unwrap();
            assert!(many.told.len() <= TOLD_MAX);
        }
        let later = told_with(&many, &copy(1), at(200_000)).unwrap();
        assert_eq!(later.told.len(), 1, "the others are over");
    }

    #[test]
    fn a_machine_of_another_uuid_or_key_was_not_told() {
        let told = told_with(&member(), &copy(1), at(0)).unwrap().told;
        let key = |n: u8| Some(KeyId([n; 16]));
        assert!(told[0].is(key(1), &copy(1).machine));
        assert!(told[0].is(key(1), &Machine::default()));
        assert!(!told[0].is(key(1), &copy(2).machine));
        assert!(!told[0].is(key(2), &copy(1).machine));
        assert!(!told[0].is(None, &copy(1).machine));
    }
}
