//! Real machines with TPMs of their hypervisor, in a pool that asks for them.

use anyhow::{Context, Result, ensure};
use testbed::{TpmCa, VirtualTpm};

use crate::clones::{Said, clone_of, said, server, tree, uuid};

#[test]
fn a_machine_joins_by_its_tpm_and_others_wait_for_a_person() -> Result<()> {
    let scratch = e2e::scratch("tpm")?;
    let dir = scratch.path();
    let ca = TpmCa::new(&dir.join("tpm-ca"))?;
    // The second was made for another VM than the one that has it.
    let mut tpms = Vec::new();
    for (name, n) in [("own", 1), ("borrowed", 9)] {
        let state = dir.join(name);
        ca.manufacture(&state, &format!("{name}:{}", uuid(n)))?;
        tpms.push(VirtualTpm::for_machine(&state)?);
    }
    let server = server(dir)?;
    let issuer = ca.issuer().display().to_string();
    let pool = ["fleet", "pool", "set", "servers", "--proof", "tpm"];
    server.cli(&[&pool[..], &["--tpm-ca", &issuer]].concat())?;
    let golden = tree(dir, &server, "token_file = \"/etc/token\"")?;
    let token = server.cli(&["token", "--pool", "servers", "--uses", "3"])?;
    golden.write("etc/token", token.trim(), 0o600)?;
    let image = golden.pack()?;

    let machine = |n: u8, tpm: Option<&VirtualTpm>| {
        let args = tpm.map(VirtualTpm::machine_args).unwrap_or_default();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        clone_of(dir, &image, n, &args)
    };
    let mut own = machine(1, Some(&tpms[0]))?;
    let mut borrowed = machine(2, Some(&tpms[1]))?;
    let mut none = machine(3, None)?;
    let up = said(&mut own, "session", Said::is_up)?;
    for vm in [&mut borrowed, &mut none] {
        said(vm, "wait", |said| {
            said.status["identity"]["state"] == "pending"
        })?;
    }
    let pending = e2e::fleet(&server, &["pending"])?;
    let waiting = pending.as_array().context("no list")?;
    ensure!(waiting.len() == 2, "{pending}");
    for why in ["its TPM is that of a VM with another SMBIOS UUID", "no TPM"] {
        let says = |text: &str| text.contains(why);
        let found = waiting
            .iter()
            .any(|it| it["why"].as_str().is_some_and(says));
        ensure!(found, "{why}: {pending}");
    }
    let members = e2e::fleet(&server, &["members"])?;
    let guests: Vec<_> = members.as_array().context("no list")?.iter().collect();
    ensure!(
        guests.len() == 1 && guests[0]["guest_id"] == up.guest(),
        "{members}"
    );
    Ok(())
}
