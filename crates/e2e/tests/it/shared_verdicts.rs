//! A second appliance and a second guest profit from the first: real processes, real servers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::server_metric;
use tempfile::TempDir;
use testbed::{Agent, AgentOptions, Server, ServerOptions, samples, wait_until};

/// Clean small files in the tree; beside them a large one and EICAR.
const SMALL: usize = 20;
const FILES: f64 = SMALL as f64 + 2.0;

struct Fleet {
    dir: TempDir,
    url: String,
}

impl Fleet {
    fn new(url: String) -> Result<Self> {
        let dir = e2e::scratch("fleet")?;
        let key = dir.path().join("fleet.key");
        std::fs::write(&key, (100..132).collect::<Vec<u8>>())?;
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600))?;
        let fleet = Self { dir, url };
        let tree = fleet.tree();
        std::fs::create_dir(&tree)?;
        for n in 0..SMALL {
            std::fs::write(tree.join(format!("small{n}")), format!("plain text {n}\n"))?;
        }
        std::fs::write(
            tree.join("large"),
            "a line of a large file\n".repeat(60_000),
        )?;
        std::fs::write(tree.join("eicar.com"), samples::eicar())?;
        Ok(fleet)
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn appliance(&self, name: &str, rules: Vec<PathBuf>) -> Result<Server> {
        let extra = format!(
            "[removal]\non_malicious = \"deny\"\n\n[verdict_store]\nurl = \"{}\"\nkey_file = {:?}\ntimeout_ms = 5000\n\n[sightings]\nflush_ms = 100\n",
            self.url,
            self.dir.path().join("fleet.key"),
        );
        let options = ServerOptions {
            extra,
            rules,
            ..ServerOptions::default()
        };
        Server::start(&self.dir.path().join(name), &options)
    }

    /// Joins a new guest and has it scan the tree: EICAR is found, everything is answered.
    fn scan(&self, guest: &str, server: &Server, tree: &Path) -> Result<()> {
        let options = AgentOptions {
            guard: vec![tree.to_owned()],
            ..AgentOptions::default()
        };
        let agent = Agent::enrol(&self.dir.path().join(guest), server, &options, None)?;
        let mut scan = Command::new(testbed::binary("lazaret-agent")?);
        scan.args(["scan", "--json"]).arg(tree).arg("--config");
        let out = scan.arg(agent.config()).output()?;
        ensure!(out.status.code() == Some(1), "{guest}: {out:?}");
        let text = String::from_utf8(out.stdout)?;
        ensure!(text.contains("eicar.com"), "{guest}: {text}");
        Ok(())
    }
}

/// Guests that hold EICAR, as `lazaret holders` says.
fn holders(server: &Server) -> Result<usize> {
    let detections = server.cli(&["detections", "--json"])?;
    let detections: serde_json::Value = serde_json::from_str(&detections)?;
    let digest = detections[0]["blake3"].as_str().unwrap_or_default();
    let table = server.cli(&["holders", digest])?;
    let json = server.cli(&["holders", digest, "--json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let holders = json["holders"].as_array().map_or(0, Vec::len);
    ensure!(table.lines().count() == holders + 1, "{table}");
    let first = &json["holders"][0];
    ensure!(
        table.contains(first["guest_id"].as_str().unwrap_or("?")),
        "{table}"
    );
    ensure!(
        first["first_seen_s"].as_u64() > Some(1_700_000_000),
        "{first}"
    );
    Ok(holders)
}

fn scans(server: &Server) -> f64 {
    server_metric(server, "lazaret_scans_total", "").unwrap_or(0.0)
}

fn store(server: &Server, what: &str, result: &str) -> f64 {
    let name = format!("lazaret_verdict_store_{what}_total");
    // The appliance's own disk is not meant.
    let of = |filter: &str| server_metric(server, &name, filter).unwrap_or(0.0);
    ["postgres", "redis"]
        .map(|store| of(&format!("store=\"{store}\",result=\"{result}\"")))
        .iter()
        .sum()
}

/// What the first has judged costs no other guest and no other appliance an engine run.
fn the_second_profits(fleet: &Fleet) -> Result<(Server, Server)> {
    let rules = || vec![testbed::rules_dir()];
    let first = fleet.appliance("first", rules())?;
    fleet.scan("guest1", &first, &fleet.tree())?;
    ensure!(scans(&first) == FILES, "{} scans", scans(&first));
    let kept = wait_until(Duration::from_secs(60), || {
        store(&first, "puts", "kept") == FILES
    });
    ensure!(kept, "kept {} of {FILES}", store(&first, "puts", "kept"));
    // Another guest of the same appliance.
    fleet.scan("guest2", &first, &fleet.tree())?;
    ensure!(scans(&first) == FILES, "the second guest cost scans");
    // Another appliance, and a third guest.
    let second = fleet.appliance("second", rules())?;
    fleet.scan("guest3", &second, &fleet.tree())?;
    ensure!(scans(&second) == 0.0, "{} scans", scans(&second));
    ensure!(store(&second, "gets", "hit") == FILES);
    let uploaded = server_metric(&second, "lazaret_content_bytes_total", "upload");
    ensure!(uploaded.is_err(), "content travelled though it is known");
    // Sightings are written down now and then.
    let seen = wait_until(Duration::from_secs(60), || {
        holders(&first).is_ok_and(|n| n >= 2)
    });
    ensure!(seen, "guests 1 and 2 hold EICAR");
    Ok((first, second))
}

#[test]
fn through_postgres() -> Result<()> {
    let mut postgres = testbed::Postgres::start()?;
    let fleet = Fleet::new(postgres.url())?;
    let (first, second) = the_second_profits(&fleet)?;
    // Whom anybody has seen, everybody knows.
    let all = wait_until(Duration::from_secs(60), || {
        holders(&first).is_ok_and(|n| n == 3) && holders(&second).is_ok_and(|n| n == 3)
    });
    ensure!(
        all,
        "{} and {} of 3 holders",
        holders(&first)?,
        holders(&second)?
    );

    // Other rules: nothing of it counts.
    let rules = fleet.dir.path().join("rules");
    std::fs::create_dir(&rules)?;
    let eicar =
        r#"rule Other { strings: $a = "EICAR-STANDARD-ANTIVIRUS-TEST-FILE" condition: $a }"#;
    std::fs::write(rules.join("other.yar"), eicar)?;
    let other = fleet.appliance("other", vec![rules])?;
    fleet.scan("guest4", &other, &fleet.tree())?;
    ensure!(scans(&other) == FILES && store(&other, "gets", "hit") == 0.0);

    // Poisoned: the entries of two contents changed places. Both are judged anew, EICAR is found.
    postgres.sql(
        "UPDATE lazaret_verdicts AS one SET sealed = (SELECT sealed FROM lazaret_verdicts AS two
         WHERE two.place <> one.place ORDER BY two.place LIMIT 1)",
    )?;
    let third = fleet.appliance("third", vec![testbed::rules_dir()])?;
    fleet.scan("guest5", &third, &fleet.tree())?;
    ensure!(scans(&third) == FILES, "{} scans", scans(&third));
    ensure!(store(&third, "gets", "bad") == FILES && store(&third, "gets", "hit") == 0.0);

    // Down: everything is judged here.
    postgres.stop()?;
    let more = fleet.dir.path().join("more");
    std::fs::create_dir(&more)?;
    std::fs::write(
        more.join("eicar.com"),
        [samples::eicar(), b"\n".to_vec()].concat(),
    )?;
    fleet.scan("guest6", &third, &more)?;
    ensure!(scans(&third) == FILES + 1.0);
    Ok(())
}

#[test]
fn through_redis() -> Result<()> {
    let redis = testbed::Redis::start()?;
    let fleet = Fleet::new(redis.url())?;
    let (first, second) = the_second_profits(&fleet)?;
    // Sightings are not shared there: each appliance knows its own guests.
    let seen = wait_until(Duration::from_secs(60), || {
        holders(&second).is_ok_and(|n| n > 0)
    });
    ensure!(seen && (holders(&first)?, holders(&second)?) == (2, 1));
    Ok(())
}
