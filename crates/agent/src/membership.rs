//! Whether this guest is a member of its fleet, for status.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use model::GuestId;
use serde_json::{Value, json};

use crate::credentials::Credentials;
use crate::machine;

/// How enrolling goes.
#[derive(Debug, Clone)]
pub(crate) enum Asking {
    /// A person is to approve it.
    Pending,
    /// The controller said no.
    Refused(String),
    /// Nobody could be asked.
    Failed(String),
}

#[derive(Debug, Default)]
struct Inner {
    guest: String,
    kept: &'static str,
    not_after_s: Option<u64>,
    /// `None`: it has not been asked, or is enrolled.
    asking: Option<Asking>,
    attempts: u64,
    /// Why it asks for an identity of its own; empty: it does not.
    copy: String,
    rekeyed: u64,
}

/// Written by whoever knows, read by status.
#[derive(Debug)]
pub(crate) struct Membership {
    inner: Mutex<Inner>,
    /// Where this machine's facts are found.
    sys_dir: PathBuf,
}

impl Membership {
    pub(crate) fn new(sys_dir: &Path) -> Self {
        Self {
            inner: Mutex::default(),
            sys_dir: sys_dir.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn asking(&self, asking: Asking) {
        let mut inner = self.lock();
        inner.attempts += 1;
        inner.asking = Some(asking);
    }

    pub(crate) fn enrolled(&self, credentials: &Credentials) {
        let mut inner = self.lock();
        inner.guest = credentials.guest.to_string();
        inner.kept = credentials.home.name();
        inner.not_after_s = not_after_s(credentials);
        inner.asking = None;
    }

    pub(crate) fn is_copy(&self, why: &str) {
        why.clone_into(&mut self.lock().copy);
    }

    pub(crate) fn has_become_another(&self) {
        let mut inner = self.lock();
        inner.copy.clear();
        inner.rekeyed += 1;
    }

    pub(crate) fn json(&self) -> Value {
        let machine = machine::facts(&self.sys_dir);
        let inner = self.lock();
        let (state, why) = match &inner.asking {
            _ if inner.guest.is_empty() && inner.asking.is_none() => ("asking", ""),
            None => ("enrolled", ""),
            Some(Asking::Pending) => ("pending", ""),
            Some(Asking::Refused(why)) => ("refused", why.as_str()),
            Some(Asking::Failed(why)) => ("failed", why.as_str()),
        };
        json!({
            "state": state,
            "why": why,
            "attempts": inner.attempts,
            "guest": inner.guest,
            "kept": inner.kept,
            "not_after_s": inner.not_after_s,
            "copy": inner.copy,
            "rekeyed": inner.rekeyed,
            "machine": {
                "system_uuid": machine.system_uuid.map(|id| GuestId(id).to_string()),
                "generation_id": machine.generation_id.map(|id| GuestId(id).to_string()),
                "macs": machine.macs.iter().map(mac_text).collect::<Value>(),
            },
        })
    }
}

fn mac_text(mac: &[u8; 6]) -> String {
    let bytes = mac.map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

/// The status for people: one line where all is well, more where it is not.
pub(crate) fn render(identity: &Value) -> String {
    let text = |key: &str| identity[key].as_str().unwrap_or("");
    let mut lines = match text("state") {
        "enrolled" => format!("guest      {}\n", text("guest")),
        "pending" => "guest      not enrolled: a person is to approve it\n".to_owned(),
        "asking" | "" => "guest      not enrolled yet\n".to_owned(),
        state => format!("guest      not enrolled, {state}: {}\n", text("why")),
    };
    if !text("copy").is_empty() {
        lines.push_str("           asks for an identity of its own: ");
        lines.push_str(text("copy"));
        lines.push('\n');
    }
    lines
}

/// When the certificate ends, seconds since 1970 UTC.
fn not_after_s(credentials: &Credentials) -> Option<u64> {
    let not_after = credentials.validity()?.not_after;
    let since = not_after.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_how_enrolling_goes() {
        let membership = Membership::new(Path::new("/nonexistent"));
        let told = || render(&membership.json());
        assert!(told().contains("not enrolled yet"), "{}", told());
        membership.asking(Asking::Pending);
        assert!(told().contains("a person is to approve"), "{}", told());
        membership.asking(Asking::Refused("no such token".to_owned()));
        assert!(told().contains("refused: no such token"), "{}", told());
        assert_eq!(membership.json()["attempts"], 2);
        membership.is_copy("told so");
        assert!(told().contains("of its own: told so"), "{}", told());
    }
}
