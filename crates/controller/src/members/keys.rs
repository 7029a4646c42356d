//! Keys in their order: the one in force, and those that were issued and not seen yet.

use std::time::SystemTime;

use pki::KeyId;

use super::records::{KeyRecord, Member, seconds};
use crate::Refusal;

/// Keys that were issued and not seen: an agent that stays connected shows none of them for days.
const ISSUED_MAX: usize = 4;

/// Who asks for the next certificate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Renewal {
    /// The key of the certificate that it has shown. `None`: it is not known.
    pub(crate) shown: Option<KeyId>,
    /// The key that the next one is for.
    pub(crate) next: KeyRecord,
    pub(crate) now: SystemTime,
}

/// The member with another certificate.
pub(crate) fn renewed(member: &Member, renewal: &Renewal) -> Result<Member, Refusal> {
    if member.is_ended() {
        return Err(Refusal::Revoked);
    }
    let mut next = member.clone();
    if let Some(shown) = renewal.shown {
        if member.ephemeral && member.key.is_some() && is_over(member, shown, renewal.now) {
            return Err(Refusal::Expired);
        }
        if let Some(seen) = seen_with(&next, shown) {
            next = seen;
        }
    }
    // Who asks again with the same key has lost the answer.
    next.issued.retain(|key| key.id != renewal.next.id);
    next.issued.push(renewal.next);
    let too_many = next.issued.len().saturating_sub(ISSUED_MAX);
    next.issued.drain(..too_many);
    next.serial = next.serial.saturating_add(1);
    Ok(next)
}

/// Whether nothing that a member holds is valid, or the key is none of its. A session that goes on
/// shows the key that it began with, whatever was issued since.
fn is_over(member: &Member, shown: KeyId, now: SystemTime) -> bool {
    let keys = || member.key.iter().chain(&member.issued);
    !keys().any(|key| key.id == shown) || keys().all(|key| key.until_s < seconds(now))
}

/// The member after it has shown a key; `None`: nothing changes. A key that was issued is in force
/// from then on, and those issued before it never will be.
pub(crate) fn seen_with(member: &Member, key: KeyId) -> Option<Member> {
    if let Some(at) = member.issued.iter().position(|issued| issued.id == key) {
        let mut next = member.clone();
        next.key = member.issued.get(at).copied();
        next.issued.drain(..=at);
        return Some(next);
    }
    if member.key.is_none() {
        // It joined before keys were noted: whatever it shows first is its key.
        let mut next = member.clone();
        next.key = Some(KeyRecord {
            id: key,
            until_s: 0,
        });
        return Some(next);
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use model::{GuestId, Machine};
    use std::time::Duration;

    fn key(n: u8, until_s: u64) -> KeyRecord {
        KeyRecord {
            id: KeyId([n; 16]),
            until_s,
        }
    }

    pub(crate) fn member() -> Member {
        Member {
            id: GuestId([1; 16]),
            hostname: String::new(),
            machine: Machine::default(),
            address: [10, 0, 0, 1].into(),
            joined_s: 0,
            token: String::new(),
            pool: None,
            ephemeral: false,
            vm: None,
            ek: None,
            serial: 1,
            key: Some(key(1, 1000)),
            issued: Vec::new(),
            copy_of: None,
            origin: None,
            vm_gone_s: None,
            told: Vec::new(),
            ended: None,
        }
    }

    fn ask(member: &Member, shown: u8, next: u8, now_s: u64) -> Result<Member, Refusal> {
        let renewal = Renewal {
            shown: Some(KeyId([shown; 16])),
            next: key(next, now_s + 1000),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(now_s),
        };
        renewed(member, &renewal)
    }

    fn ids(member: &Member) -> (u8, Vec<u8>, u64) {
        let issued = member.issued.iter().map(|key| key.id.0[0]);
        (member.key.unwrap().id.0[0], issued.collect(), member.serial)
    }

    #[test]
    fn a_key_is_in_force_when_it_is_seen() {
        let second = ask(&member(), 1, 2, 100).unwrap();
        assert_eq!(ids(&second), (1, vec![2], 2));
        // An answer that was lost: both may come.
        let third = ask(&second, 1, 3, 200).unwrap();
        assert_eq!(ids(&third), (1, vec![2, 3], 3));
        let seen = seen_with(&third, KeyId([2; 16])).unwrap();
        assert_eq!(ids(&seen), (2, vec![3], 3));
        let seen = seen_with(&third, KeyId([3; 16])).unwrap();
        assert_eq!(ids(&seen), (3, vec![], 3));
        assert_eq!(seen_with(&seen, KeyId([3; 16])), None);
        assert_eq!(seen_with(&seen, KeyId([1; 16])), None, "an older one");
        // A renewal shows a key as a session does.
        assert_eq!(ids(&ask(&third, 3, 4, 300).unwrap()), (3, vec![4], 4));
    }

    #[test]
    fn a_session_of_many_days_keeps_the_latest_keys() {
        let mut member = member();
        for next in 2..20 {
            member = ask(&member, 1, next, 100).unwrap();
        }
        assert_eq!(ids(&member), (1, vec![16, 17, 18, 19], 19));
        let again = ask(&member, 1, 19, 100).unwrap();
        assert_eq!(ids(&again).1, [16, 17, 18, 19]);
    }

    #[test]
    fn what_has_expired_is_not_renewed_where_keys_are_in_memory() {
        let mut member = member();
        assert!(ask(&member, 1, 2, 5000).is_ok());
        member.ephemeral = true;
        assert!(ask(&member, 1, 2, 1000).is_ok());
        assert_eq!(ask(&member, 1, 2, 1001), Err(Refusal::Expired));
        // A session that goes on shows its first key.
        let second = ask(&member, 1, 2, 900).unwrap();
        let third = ask(&second, 1, 3, 1800).unwrap();
        assert_eq!(ask(&third, 1, 4, 2801), Err(Refusal::Expired));
        assert_eq!(
            ask(&member, 9, 2, 10),
            Err(Refusal::Expired),
            "an older one"
        );
    }
}
