//! Against fakes of two hosts: no server is to be had. NTLM is checked with the standard's own
//! example, and the fake's WS-Management with PyPI `pypsrp` (needs python3 and pip, and the package
//! index once).

mod fake;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hypervisor_conformance::{Rig, conform};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_against_two_fakes() -> Result<()> {
    conform(&mut fake::Fakes::start().await?).await
}

/// What a client that knows real servers reads from the fake.
const CHECK: &str = r#"
import sys
from xml.etree import ElementTree as E
from pypsrp.wsman import WSMan
from pypsrp.exceptions import AuthenticationError
NS = "http://schemas.xmlsoap.org/ws/2004/09/enumeration"
W = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
URI = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/*"

def client(password):
    return WSMan("127.0.0.1", port=int(sys.argv[1]), ssl=False, auth="ntlm", encryption="never",
                 username="DOMAIN\\lazaret", password=password, no_proxy=True)

def enumerate(wsman):
    body = E.Element("{%s}Enumerate" % NS)
    query = E.SubElement(body, "{%s}Filter" % W,
                         Dialect="http://schemas.microsoft.com/wbem/wsman/1/WQL")
    query.text = "SELECT * FROM Msvm_ComputerSystem"
    return wsman.enumerate(URI, body)

try:
    enumerate(client("wrong"))
    raise SystemExit("a wrong password was accepted")
except AuthenticationError:
    pass
def all_of(node, name):
    return [found for found in node.iter() if found.tag.endswith("}" + name)]

wsman = client(sys.argv[2])
found = enumerate(wsman)
names = [node.text for node in all_of(found, "ElementName")]
while not all_of(found, "EndOfSequence"):
    pull = E.Element("{%s}Pull" % NS)
    context = E.SubElement(pull, "{%s}EnumerationContext" % NS)
    context.text = all_of(found, "EnumerationContext")[0].text
    found = wsman.pull(URI, pull)
    names += [node.text for node in all_of(found, "ElementName")]
assert "checked" in names, names
print("good")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_client_understands_the_fake() -> Result<()> {
    let mut fakes = fake::Fakes::start().await?;
    fakes.create("checked").await?;
    let port = fakes.plain_port().to_string();
    let said = tokio::task::spawn_blocking(move || -> Result<String> {
        let out = Command::new("python3")
            .args(["-W", "ignore", "-c", CHECK, &port, fake::PASSWORD])
            .env("PYTHONPATH", other_client()?)
            .output()?;
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(out.status.success(), "{errors}");
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    });
    assert_eq!(said.await??, "good");
    Ok(())
}

/// Installed once, kept in the cache that `./x` names.
fn other_client() -> Result<PathBuf> {
    let cache = std::env::var_os("LAZARET_CACHE").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/lazaret"));
    let cache = cache
        .or_else(home)
        .context("neither LAZARET_CACHE nor HOME")?;
    let dir = cache.join("python-pypsrp");
    if !dir.join("pypsrp").exists() {
        let done = Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .arg("--target")
            .arg(&dir)
            .arg("pypsrp==0.8.1")
            .status()?;
        ensure!(
            done.success(),
            "pip cannot install pypsrp: install python3-pip"
        );
    }
    Ok(dir)
}
