//! Listed content is not asked about, unless that is wanted.

use allowlist::{List, SigningKey};
use model::Digest;

use crate::appliance::judge;
use crate::scene::{Scene, json};

#[test]
fn listed_content_is_clean_without_a_question() {
    let mut scene = Scene::new(judge);
    scene.write("known", b"known");
    scene.write("unknown", b"unknown");
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::create(&folder.path().join("key")).unwrap();
    let listed = vec![Digest::of(b"known").0];
    let list = List::new("gold", 3, 0, listed, Vec::new()).unwrap();
    let path = folder.path().join("list");
    list.write(&path, Some(&key)).unwrap();
    scene.config.allowlist.files = vec![path.clone()];
    scene.config.allowlist.trusted_keys = vec![key.public()];
    let (ended, out) = scene.scan(&["--json"]);
    assert_eq!((ended.totals.clean, ended.totals.allowlisted), (2, 1));
    assert_eq!(json(&out).last().unwrap()["allowlisted"], 1, "{out}");
    assert_eq!(scene.asked(), ["unknown"]);
    let kept = scene.config.state_dir.join("allowlist.serials");
    assert!(!kept.exists(), "the agent keeps them, a scan does not");
    let (_, out) = scene.scan(&[]);
    assert!(out.contains("Allowlisted: 1"), "{out}");
    let (ended, _) = scene.scan(&["--no-allowlist"]);
    assert_eq!((ended.totals.clean, ended.totals.allowlisted), (2, 0));
    assert_eq!(scene.asked(), ["known", "unknown", "unknown", "unknown"]);
    // A list that nobody trusted has signed says nothing.
    list.write(&path, None).unwrap();
    let (ended, _) = scene.scan(&[]);
    assert_eq!(ended.totals.allowlisted, 0);
}
