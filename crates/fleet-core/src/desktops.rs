//! Whether somebody works at a VM: a desktop broker knows, and says so by an administrator's socket.
//! Background work of such a VM comes after that of others.

use std::time::Duration;

use placement::VmId;

use crate::core::{Clock, Core};
use crate::rows::{InSession, Row};

/// VMs that an event names.
const NAMED_MAX: usize = 20;

impl Core {
    /// Somebody works at these VMs, or nobody does, for so long; `None`: nobody says any more.
    pub fn order_in_session(&mut self, clock: Clock, vms: &[VmId], said: Option<(bool, Duration)>) {
        let in_session = said.map(|(is_so, valid)| InSession {
            is_so,
            until_ms: clock
                .wall_ms
                .saturating_add(u64::try_from(valid.as_millis()).unwrap_or(u64::MAX)),
        });
        let mut names = Vec::new();
        for id in vms {
            let Some(vm) = self.vms.get_mut(id) else {
                continue;
            };
            names.push(vm.record.name.clone());
            vm.in_session = in_session;
            let vm = vm.clone();
            self.write(Row::Vm(vm));
        }
        let what = match said {
            Some((true, valid)) => format!("in session for {} s", valid.as_secs()),
            Some((false, valid)) => format!("idle for {} s", valid.as_secs()),
            None => "nobody says whether somebody works at them".to_owned(),
        };
        let more = names.len().saturating_sub(NAMED_MAX);
        names.truncate(NAMED_MAX);
        let mut text = format!("{}: {what}", names.join(", "));
        if more > 0 {
            text.push_str(&format!(", and at {more} more"));
        }
        self.event(clock, "vm_in_session", text);
    }

    /// Somebody works at it, as far as anybody says.
    pub(crate) fn is_in_session(&self, clock: Clock, vm: VmId) -> bool {
        let vm = self.vms.get(&vm);
        let said = vm.and_then(|vm| vm.in_session_at(clock.wall_ms));
        said.is_some_and(|said| said.is_so)
    }
}
