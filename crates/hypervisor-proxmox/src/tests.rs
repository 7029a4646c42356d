//! Against a fake that answers as the API's schema says: no server is to be had.

mod fake;

use anyhow::Result;
use hypervisor_conformance::conform;

use crate::records::{hardware, tags};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_against_the_fake() -> Result<()> {
    conform(&mut fake::Fake::start().await?).await
}

#[test]
fn settings_as_proxmox_writes_them() {
    let settings = serde_json::json!({
        "net0": "virtio=BC:24:11:2C:69:EC,bridge=vmbr0,firewall=1",
        "net1": "e1000=BC:24:11:2C:69:ED,bridge=vmbr1,tag=5",
        "smbios1": "uuid=6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "memory": "2048", "cores": 2,
    });
    let settings = serde_json::from_value(settings).expect("a map");
    let found = format!("{:?}", hardware(&settings));
    assert!(found.contains("bc:24:11:2c:69:ec"), "{found}");
    assert!(found.contains("bc:24:11:2c:69:ed"), "{found}");
    assert!(found.contains("[107, 167, 184, 16"), "{found}");
}

#[test]
fn tags_in_every_spelling() {
    for text in ["a;b", "a,b", "a b", "b;a;"] {
        let found: Vec<String> = tags(text).into_iter().collect();
        assert_eq!(found, ["a", "b"], "{text}");
    }
}
