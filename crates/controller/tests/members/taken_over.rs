//! The journal of earlier versions comes into the database once, whole, and is set aside.

use std::path::Path;
use std::time::{Duration, SystemTime};

use controller::fleet::Store;
use controller::{Authority, AuthorityError};
use model::GuestId;
use pki::{Fingerprint, JoinToken};

use crate::scene::{Joiner, ca, embedded, joined};

fn line(json: &str) -> String {
    let sum = Fingerprint::of(json.as_bytes()).to_string();
    format!("{} {json}\n", &sum[..16])
}

/// A journal with a token that has two uses left, a guest, and one that was revoked.
fn journal(pki: &Path) -> JoinToken {
    let token = JoinToken::generate(ca(pki).fingerprint()).unwrap();
    let hash = token.secret.hash();
    let (guest, revoked) = ("11".repeat(16), "22".repeat(16));
    let until = SystemTime::now() + Duration::from_secs(3600);
    let until_s = until
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let joined = |guest: &str| {
        format!(
            r#"{{"change":"joined","guest":"{guest}","token_hash":"{hash}","hostname":"web-1","system_uuid":[3,3,3,3,3,3,3,3,3,3,3,3,3,3,3,3],"address":"10.0.0.1","at_s":5}}"#
        )
    };
    let lines = [
        format!(r#"{{"change":"token","hash":"{hash}","uses_max":4,"expires_at_s":{until_s}}}"#),
        joined(&guest),
        joined(&revoked),
        format!(r#"{{"change":"revoked","guest":"{revoked}","at_s":9}}"#),
    ];
    let text: String = lines.iter().map(|json| line(json)).collect();
    std::fs::write(pki.join("members.journal"), text).unwrap();
    token
}

#[tokio::test]
async fn a_journal_is_taken_over_once_and_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let token = journal(&pki);
    let text = std::fs::read(pki.join("members.journal")).unwrap();
    let (guest, revoked) = (GuestId([0x11; 16]), GuestId([0x22; 16]));
    let first = embedded(dir.path()).await;
    assert_eq!(first.guests().len(), 2);
    assert_eq!(first.guest(guest).unwrap().hostname, "web-1");
    assert_eq!(
        first.guest(guest).unwrap().machine.system_uuid,
        Some([3; 16])
    );
    assert!(!first.is_revoked(guest) && first.is_revoked(revoked));
    assert!(!pki.join("members.journal").exists());
    assert!(pki.join("members.journal.taken-over").exists());
    let now = SystemTime::now();
    first.revoke(guest, false, "", now).await.unwrap();
    joined(Joiner::new(1).ask(&first, &token, None).await);
    joined(Joiner::new(2).ask(&first, &token, None).await);
    drop(first);

    // A crash between the database and the file: it is still there at the next start.
    std::fs::write(pki.join("members.journal"), text).unwrap();
    let second = embedded(dir.path()).await;
    assert_eq!(second.guests().len(), 4);
    assert!(second.is_revoked(guest), "what came after counts");
    assert!(second.tokens(now).is_empty(), "no use comes back");
    assert!(!pki.join("members.journal").exists());
}

#[tokio::test]
async fn a_damaged_journal_stops_the_start_and_nothing_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    journal(&pki);
    let path = pki.join("members.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let store = Store::embedded(dir.path()).await.unwrap();
    let refused = Authority::open(store, ca(&pki), &pki).await;
    assert!(matches!(refused, Err(AuthorityError::Journal(_))));
    std::fs::remove_file(&path).unwrap();
    assert!(embedded(dir.path()).await.guests().is_empty());
}

#[tokio::test]
async fn a_database_of_another_ca_is_refused_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    drop(embedded(dir.path()).await);
    let (store, other) = (
        Store::embedded(dir.path()).await.unwrap(),
        dir.path().join("other"),
    );
    let Err(error) = Authority::open(store, ca(&other), &other).await else {
        panic!("it was opened");
    };
    let text = error.to_string();
    assert!(text.contains("copy ca.crt and ca.key"), "{text}");
    assert!(
        text.contains(&ca(&other).fingerprint().to_string()),
        "{text}"
    );
}
