//! `./x demo`: the real daemons on this machine, a scratch file system of real files, and what
//! happens to good and bad ones.

mod stage;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testbed::wait_until;

use stage::Stage;

/// Time for a removal, a ledger or a metric to show.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shows everything; stays until Ctrl-C unless told to exit.
pub(crate) fn run(exit: bool) -> Result<()> {
    // Ctrl-C ends the guards below in order, rather than us alone.
    let stop = daemon::signal::Stop::install()?;
    let stage = Stage::set()?;
    println!(
        "\nGuarded: {} ({} real files)",
        stage.guarded().display(),
        stage.clean.len()
    );
    clean(&stage)?;
    for bad in &stage.bad {
        denied(&stage, &bad.path, bad.what)?;
    }
    removal(&stage)?;
    bytes(&stage)?;
    if !exit {
        println!(
            "\nGuarding {} until Ctrl-C. Try, in another terminal:",
            stage.guarded().display()
        );
        println!("  cat {}/0/*", stage.guarded().display());
        println!("  {}", stage.hint("lazaret", "status"));
        println!("  {}", stage.hint("lazaret-agent", "status"));
        stop.wait();
        println!("\nEnding.");
    }
    stage.end()
}

/// Opens every good file twice: cold, then from the agent's cache.
fn clean(stage: &Stage) -> Result<()> {
    heading("Clean files are opened");
    let once = || -> Result<Vec<Duration>> { stage.clean.iter().map(|file| open(file)).collect() };
    for (what, mut times) in [("first time, scanned", once()?), ("again, known", once()?)] {
        times.sort();
        let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
        let count = times.len();
        println!("  {count} files, {what:<20} median {median:>9.1?}, slowest {slowest:>9.1?}");
    }
    Ok(())
}

fn open(file: &Path) -> Result<Duration> {
    let start = Instant::now();
    let opened = File::open(file);
    let took = start.elapsed();
    opened.with_context(|| format!("{} should be clean", file.display()))?;
    Ok(took)
}

/// Opens a bad file, which must fail with EPERM, and tells the name of what was found.
fn denied(stage: &Stage, file: &Path, what: &str) -> Result<()> {
    heading(&format!("Denied: {what}"));
    let start = Instant::now();
    let opened = File::open(file);
    let took = start.elapsed();
    let Err(error) = opened else {
        bail!("{} was opened", file.display());
    };
    const EPERM: i32 = 1;
    ensure!(
        error.raw_os_error() == Some(EPERM),
        "{error} instead of EPERM"
    );
    println!("  open {} -> {error}, after {took:.1?}", file.display());
    let detection = detection_of(stage, file)?;
    for found in detection["detections"].as_array().into_iter().flatten() {
        let name = found["name"].as_str().unwrap_or_default();
        let engine = found["engine"].as_str().unwrap_or_default();
        let inside = inside(&found["path_inside"]);
        println!("  detected {name} ({engine}){inside}");
    }
    Ok(())
}

/// The names of the containers around a member, as the appliance tells them.
fn inside(path: &Value) -> String {
    let parts = path.as_array().into_iter().flatten();
    let parts: Vec<&str> = parts.filter_map(Value::as_str).collect();
    match path.as_str() {
        Some(text) if !text.is_empty() => format!(" in {text}"),
        _ if !parts.is_empty() => format!(" in {}", parts.join(" / ")),
        _ => String::new(),
    }
}

fn detection_of(stage: &Stage, file: &Path) -> Result<Value> {
    let mut found = None;
    wait_until(PATIENCE, || {
        let listed = stage.server_json(&["detections", "--json"]);
        found = listed.ok().and_then(|listed| by_path(&listed, file));
        found.is_some()
    });
    found.with_context(|| format!("no detection of {}", file.display()))
}

fn by_path(listed: &Value, file: &Path) -> Option<Value> {
    let entries = listed.as_array()?;
    let same = |entry: &&Value| entry["path"].as_str() == file.to_str();
    entries.iter().find(same).cloned()
}

/// The bad files are sealed away; one is released and comes back.
fn removal(stage: &Stage) -> Result<()> {
    heading("Removed: into quarantine, by the appliance's order");
    for bad in &stage.bad {
        let gone = wait_until(PATIENCE, || !bad.path.exists());
        ensure!(gone, "{} is still there", bad.path.display());
        println!("  {} is gone", bad.path.display());
    }
    let listed = stage.server_json(&["quarantine", "list", "--json"])?;
    let bad = stage.bad.first().context("nothing bad")?;
    let item = by_path(&listed, &bad.path).context("not in quarantine")?;
    let id = item["item_id"].as_str().context("an item without id")?;
    heading("Restored: released by the administrator, under its old name");
    stage
        .server
        .cli(&["quarantine", "restore", id, "--release"])?;
    let content = std::fs::read(&bad.path).context("released, so it opens")?;
    ensure!(content == bad.content, "not what was taken away");
    println!(
        "  {} is back, {} bytes, and opens",
        bad.path.display(),
        content.len()
    );
    Ok(())
}

fn bytes(stage: &Stage) -> Result<()> {
    heading("What it took");
    let moved = stage.relay.bytes();
    let held = stage.bytes();
    println!("  {held} bytes of files");
    println!(
        "  {} bytes up, {} bytes down on the wire, TLS included",
        moved.up, moved.down
    );
    println!(
        "  agent's metrics      http://{}/metrics",
        stage.agent.metrics
    );
    println!(
        "  appliance's metrics  http://{}/metrics",
        stage.server.metrics
    );
    Ok(())
}

fn heading(text: &str) {
    println!("\n{text}");
}
