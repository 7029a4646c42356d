//! Rules change: what was clean is judged by the new rules alone, before anybody asks.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Setup, System, open, server_metric};
use testbed::{Agent, AgentOptions, Server, ServerOptions, wait_until};

const FILES: usize = 30;

fn scans(server: &Server, engine: &str) -> f64 {
    let filter = format!("engine=\"{engine}\"");
    server_metric(server, "lazaret_scans_total", &filter).unwrap_or(0.0)
}

#[test]
fn only_new_rules_run_over_what_is_known() -> Result<()> {
    let scratch = e2e::scratch("rules")?;
    let (rules, tree) = (scratch.path().join("rules"), scratch.path().join("tree"));
    std::fs::create_dir(&rules)?;
    std::fs::create_dir(&tree)?;
    let old = r#"rule Old { strings: $a = "an old secret" condition: $a }"#;
    std::fs::write(rules.join("old.yar"), old)?;
    for n in 0..FILES {
        std::fs::write(tree.join(format!("f{n}")), format!("plain text {n}\n"))?;
    }
    std::fs::write(
        tree.join("large"),
        "a line of a large file\n".repeat(60_000),
    )?;
    std::fs::write(tree.join("later"), "a new secret\n")?;
    let options = ServerOptions {
        rules: vec![rules.clone()],
        extra: "[removal]\non_malicious = \"deny\"\n".to_owned(),
        ..ServerOptions::default()
    };
    let server = Server::start(&scratch.path().join("server"), &options)?;
    let scan = |guest: &str| -> Result<Option<i32>> {
        let options = AgentOptions {
            guard: vec![tree.clone()],
            ..AgentOptions::default()
        };
        let agent = Agent::enrol(&scratch.path().join(guest), &server, &options, None)?;
        let mut scan = Command::new(testbed::binary("lazaret-agent")?);
        scan.arg("scan").arg(&tree).arg("--config");
        Ok(scan.arg(agent.config()).output()?.status.code())
    };
    let all = FILES as f64 + 2.0;
    ensure!(scan("guest1")? == Some(0));
    ensure!(scans(&server, "yara") == all);
    // The manifest of these rules is written in the background.
    let manifest = scratch.path().join("server/state/rules.manifest");
    ensure!(wait_until(Duration::from_secs(60), || manifest.exists()));

    // Another file, and another rule in a file that stays.
    let new = r#"rule New { strings: $a = "a new secret" condition: $a }"#;
    std::fs::write(rules.join("new.yar"), new)?;
    let more = r#"rule Large { condition: filesize > 10MB }"#;
    std::fs::write(rules.join("old.yar"), format!("{old}\n{more}"))?;
    server.cli(&["reload"])?;
    let rejudged = wait_until(Duration::from_secs(60), || {
        server_metric(&server, "lazaret_rejudged_total", "background").is_ok_and(|n| n == all)
    });
    ensure!(rejudged, "what is here was not judged again");
    ensure!(scans(&server, "new_rules") == all);
    ensure!(scan("guest2")? == Some(1), "the new rule found nothing");
    ensure!(
        scans(&server, "yara") == all,
        "all rules ran over what was known"
    );

    // Rules that go cost nothing at all, and what they found is judged anew.
    std::fs::remove_file(rules.join("new.yar"))?;
    let before = std::fs::read_to_string(&manifest)?;
    server.cli(&["reload"])?;
    let changed = || std::fs::read_to_string(&manifest).is_ok_and(|now| now != before);
    ensure!(wait_until(Duration::from_secs(60), changed));
    ensure!(scan("guest3")? == Some(0));
    ensure!(scans(&server, "new_rules") == all);
    ensure!(
        scans(&server, "yara") == all + 1.0,
        "{}",
        scans(&server, "yara")
    );
    Ok(())
}

/// With and without content that the appliance keeps, a file that was clean and that nobody opens
/// again is found and removed.
#[test]
fn what_nobody_opens_is_judged_by_new_rules_and_removed() -> Result<()> {
    for kept in ["0", "268435456"] {
        let scratch = e2e::scratch("rules")?;
        let rules = scratch.path().join("rules");
        std::fs::create_dir(&rules)?;
        let old = r#"rule Old { strings: $a = "an old secret" condition: $a }"#;
        std::fs::write(rules.join("old.yar"), old)?;
        let system = System::start(Setup {
            server: ServerOptions {
                rules: vec![rules.clone()],
                extra: format!(
                    "[removal]\non_malicious = \"quarantine\"\n[limits]\nretained_bytes_max = {kept}\n"
                ),
                ..ServerOptions::default()
            },
            ..Setup::default()
        })?;
        let bad = system.write("bad", b"a new secret, asleep\n")?;
        let good = system.write("good", b"nothing of that kind\n")?;
        ensure!(open(&bad)?.allowed && open(&good)?.allowed);
        let manifest = system.scratch.path().join("server/state/rules.manifest");
        ensure!(wait_until(Duration::from_secs(60), || manifest.exists()));

        let new = r#"rule New { strings: $a = "a new secret" condition: $a }"#;
        std::fs::write(rules.join("new.yar"), new)?;
        system.server.cli(&["reload"])?;
        ensure!(
            wait_until(Duration::from_secs(60), || !bad.exists()),
            "kept {kept}: it is still there"
        );
        let found = serde_json::to_string(&system.detections()?)?;
        ensure!(found.contains("New") && found.contains("/bad"), "{found}");
        let listed = system.server.cli(&["quarantine", "list", "--json"])?;
        ensure!(listed.contains("/bad"), "{listed}");
        ensure!(good.exists() && open(&good)?.allowed);
        if kept == "0" {
            let asked = |result: &str| {
                let filter = format!("result=\"{result}\"");
                system.server_metric("lazaret_rechecks_total", &filter)
            };
            ensure!(asked("malicious")? == 1.0);
            ensure!(system.agent_metric("lazaret_agent_rechecked_total", "")? >= 2.0);
        }
    }
    Ok(())
}
