//! What is written down of guests, as the controller keeps it: the key in force, those that were
//! issued and not seen, and the machine.

use std::collections::BTreeMap;

use fleet_core::{Key, KnownGuest, Note};
use model::{GuestId, Machine};

/// Keys that were issued and not seen.
const ISSUED_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Members(BTreeMap<GuestId, KnownGuest>);

impl Members {
    pub(crate) fn get(&self, guest: GuestId) -> KnownGuest {
        self.0.get(&guest).cloned().unwrap_or_default()
    }

    /// A machine has an identity of its own from now on.
    pub(crate) fn join(&mut self, guest: GuestId, key: Key, machine: Machine) {
        let known = KnownGuest {
            key: Some(key),
            issued: Vec::new(),
            machine,
        };
        self.0.insert(guest, known);
    }

    /// A certificate for the next key was issued to whoever has shown this one.
    pub(crate) fn renewed(&mut self, guest: GuestId, shown: Key, next: Key) {
        self.seen(guest, shown);
        if let Some(known) = self.0.get_mut(&guest) {
            known.issued.push(next);
            let too_many = known.issued.len().saturating_sub(ISSUED_MAX);
            known.issued.drain(..too_many);
        }
    }

    fn seen(&mut self, guest: GuestId, key: Key) {
        if let Some(known) = self.0.get_mut(&guest)
            && let Some(at) = known.issued.iter().position(|issued| *issued == key)
        {
            known.key = Some(key);
            known.issued.drain(..=at);
        }
    }

    /// Of several controllers any one may write: the state that is changed decides.
    pub(crate) fn note(&mut self, notes: Vec<Note>) {
        for note in notes {
            match note {
                Note::KeySeen(guest, key) => self.seen(guest, key),
                Note::MachineIs(guest, machine) => {
                    if let Some(known) = self.0.get_mut(&guest) {
                        known.machine = machine;
                    }
                }
                Note::CopyTold(_) | Note::VmDeleted(_) | Note::VmFound(_) => {}
            }
        }
    }
}
