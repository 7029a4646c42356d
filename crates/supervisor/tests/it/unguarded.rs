//! Both processes killed: the kernel opens the door. The next agent says for how long, and judges
//! what went through it.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{Setup, System, open};
use testbed::{ServerOptions, samples, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

fn setup() -> Setup {
    Setup {
        server: ServerOptions {
            extra: "[removal]\non_malicious = \"quarantine\"\n".to_owned(),
            ..ServerOptions::default()
        },
        ..Setup::default()
    }
}

#[test]
fn what_came_while_nobody_guarded_is_judged_first() -> Result<()> {
    let mut system = System::start(setup())?;
    let old = system.write("old.txt", b"judged before\n")?;
    ensure!(open(&old)?.allowed);
    system.agent.kill()?;
    // So that stamps of whole seconds tell before from after.
    std::thread::sleep(Duration::from_millis(1_100));
    let bad = system.write("bad.com", &samples::eicar())?;
    ensure!(open(&bad)?.allowed, "nobody guards");
    system.agent.restart(None)?;
    let status = system.agent.status()?;
    let length_ms = status["unguarded"]["length_ms"].as_u64().unwrap_or(0);
    ensure!(length_ms >= 1_000, "{status}");
    // Nobody opens it again: the sweep alone finds it.
    let removed = wait_until(PATIENCE, || !bad.exists());
    ensure!(removed, "not judged: {}", system.agent.status()?);
    let told = wait_until(PATIENCE, || {
        system
            .server
            .cli(&["detections", "--json"])
            .is_ok_and(|text| text.contains("bad.com"))
    });
    ensure!(told, "the appliance knows nothing of it");
    ensure!(old.exists());
    Ok(())
}

#[test]
fn an_end_in_order_leaves_no_gap() -> Result<()> {
    let mut system = System::start(setup())?;
    system.agent.stop()?;
    system.agent.restart(None)?;
    let status = system.agent.status()?;
    ensure!(status["unguarded"]["from_ms"] == 0, "{status}");
    Ok(())
}
