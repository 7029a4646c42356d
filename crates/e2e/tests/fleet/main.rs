//! Where guests are: libvirt's test driver says which VM is on which host, guests measure, a
//! hypervisor's channel tells.

mod clones;
mod nearness;
mod position;
mod tpm;
mod turns;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::{Server, TestDriver, wait_until};

/// A busy machine is slow; this is no measure of speed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The connector's table, for hosts named host0, host1, …
fn connector(drivers: &[TestDriver]) -> Result<String> {
    let mut text = "\n[[connector]]\nname = \"kvm\"\n[connector.libvirt]\nhosts = [\n".to_owned();
    for (i, driver) in drivers.iter().enumerate() {
        writeln!(
            text,
            "  {{ uri = \"{}\", name = \"host{i}\" }},",
            driver.uri()
        )?;
    }
    text.push_str("]\n");
    Ok(text)
}

/// What is said of a VM that a connector knows; nothing where it is not known, or not once.
fn vm(server: &Server, name: &str) -> Value {
    let all = e2e::fleet(server, &["vms"]).unwrap_or_default();
    let own = |vm: &&Value| vm["name"] == name && vm["connector"] == "kvm";
    let mut found = all.as_array().into_iter().flatten().filter(own);
    match (found.next(), found.next()) {
        (Some(only), None) => only.clone(),
        _ => Value::Null,
    }
}

/// Waits until a VM is as wanted.
fn wait_for(server: &Server, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let found = wait_until(PATIENCE, || wanted(&vm(server, name)));
    ensure!(
        found,
        "{}\n{}",
        e2e::fleet(server, &["vms"])?,
        e2e::fleet(server, &["events"])?
    );
    Ok(vm(server, name))
}
