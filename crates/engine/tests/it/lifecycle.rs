//! Starts, failures, deaths and reloads of templates.

use std::time::Duration;

use engine::host::{Engine, EngineSpec, StartError};
use model::{Generation, UnscannedReason};

use crate::{assert_clean, eventually, scan, spec, start};

async fn start_error(spec: EngineSpec) -> StartError {
    match Engine::start(spec).await {
        Ok(_) => panic!("the engine started"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn mistakes_in_rules_are_all_told() {
    let error = start_error(spec(&["fail=rules/a.yar:12: unknown identifier"])).await;
    assert_eq!(
        error.to_string(),
        "engine test: rules/a.yar:12: unknown identifier; second mistake"
    );
}

#[tokio::test]
async fn a_template_that_cannot_start_is_told() {
    let mut missing = spec(&[]);
    missing.program = "/nonexistent/engine".into();
    assert!(matches!(
        start_error(missing).await,
        StartError::Spawn { .. }
    ));
    let died = start_error(spec(&["die"])).await;
    assert!(died.to_string().contains("signal: 6"), "{died}");
    let threads = start_error(spec(&["thread"])).await;
    assert!(
        threads.to_string().contains("cannot fork with 2 threads"),
        "{threads}"
    );
    let worker = start_error(spec(&["worker-error=no clamd at /x"])).await;
    assert!(worker.to_string().contains("no clamd at /x"), "{worker}");
    let stillborn = start_error(spec(&["dies-at-birth"])).await;
    assert!(stillborn.to_string().contains("signal 6"), "{stillborn}");
    let mut slow = spec(&["slow=60000"]);
    slow.load_timeout = Duration::from_millis(100);
    assert!(matches!(
        start_error(slow).await,
        StartError::Timeout { .. }
    ));
    let mut none = spec(&[]);
    none.workers = 0;
    assert!(matches!(start_error(none).await, StartError::Spec { .. }));
    // Something that is no engine at all.
    let mut other = spec(&[]);
    other.program = "/bin/true".into();
    assert!(matches!(start_error(other).await, StartError::Died { .. }));
}

#[tokio::test]
async fn workers_work_at_the_same_time_and_die_with_the_engine() {
    let mut spec = spec(&[]);
    spec.workers = 3;
    let engine = Engine::start(spec).await.expect("starts");
    let scans: Vec<_> = (0..3)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { scan(&engine, "hang").await })
        })
        .collect();
    eventually("all are busy", || engine.stats().workers_idle == 0).await;
    engine.stop().await;
    for scan in scans {
        let result = scan.await.expect("joined");
        let (reason, detail) = result.incomplete.expect("incomplete");
        assert_eq!(reason, UnscannedReason::EngineCrashed, "{detail}");
    }
    let late = scan(&engine, "clean").await;
    let (reason, _) = late.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineUnavailable);
}

#[tokio::test]
async fn a_reload_swaps_and_lets_the_old_finish() {
    let engine = start(&["generation=1"]).await;
    let old = tokio::spawn({
        let engine = engine.clone();
        async move { scan(&engine, "sleep 500").await }
    });
    eventually("the old one is busy", || engine.stats().workers_idle == 0).await;
    engine
        .reload(Some(vec!["generation=2".into()]))
        .await
        .expect("reloads");
    assert_eq!(engine.info().generation, [2; 16]);
    let new = scan(&engine, "clean").await;
    assert_eq!(new.generation, Generation([2; 16]));
    let old = old.await.expect("joined");
    assert_clean(&old);
    assert_eq!(old.generation, Generation([1; 16]));
    // The same arguments from then on.
    engine.reload(None).await.expect("reloads");
    assert_eq!(engine.info().generation, [2; 16]);
    let stats = engine.stats();
    assert_eq!((stats.reloads_total, stats.restarts_total), (2, 0));
    assert_eq!((stats.killed_total, stats.crashed_total), (0, 0));
}

#[tokio::test]
async fn a_failed_reload_changes_nothing() {
    let engine = start(&["generation=1"]).await;
    let error = engine.reload(Some(vec!["fail=bad rule".into()])).await;
    assert!(error.expect_err("refused").to_string().contains("bad rule"));
    assert_eq!(engine.info().generation, [1; 16]);
    assert_clean(&scan(&engine, "clean").await);
    engine
        .reload(None)
        .await
        .expect("the old arguments still hold");
    assert_eq!(engine.stats().reloads_failed_total, 1);
}

/// Process ids whose parent is `parent`.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

/// `None`: there is no such process, or only its corpse.
fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut rest = stat.rsplit_once(") ")?.1.split(' ');
    let state = rest.next()?;
    let parent = rest.next()?.parse().ok()?;
    (state != "Z").then_some(parent)
}

/// The template that `host` started with this mark among its arguments.
fn template_marked(host: u32, mark: &str) -> Option<u32> {
    children_of(host).into_iter().find(|id| {
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline"));
        line.is_ok_and(|line| line.contains(mark) && line.contains("lazaret-engine-test"))
    })
}

fn kill(process: u32) {
    let id = i32::try_from(process).ok();
    let id = id.and_then(rustix::process::Pid::from_raw).expect("an id");
    rustix::process::kill_process(id, rustix::process::Signal::KILL).expect("killed");
}

#[tokio::test]
async fn a_template_that_dies_is_started_again() {
    let engine = start(&["mark=dies"]).await;
    let template = template_marked(std::process::id(), "mark=dies").expect("a template");
    let workers = children_of(template);
    assert_eq!(workers.len(), 1);
    let busy = tokio::spawn({
        let engine = engine.clone();
        async move { scan(&engine, "hang").await }
    });
    eventually("the worker is busy", || engine.stats().workers_idle == 0).await;
    kill(template);
    let result = busy.await.expect("joined");
    let (reason, _) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineCrashed);
    assert_clean(&scan(&engine, "clean").await);
    assert_eq!(engine.stats().restarts_total, 1);
    assert!(workers.into_iter().all(|id| parent_of(id).is_none()));
}

#[tokio::test]
async fn nothing_outlives_a_host_that_was_killed() {
    let mut host = std::process::Command::new(crate::example("round-trip"))
        .arg(crate::program())
        .arg("mark=orphan")
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("runs");
    let mut template = None;
    let mut workers = Vec::new();
    eventually("a host with a template and workers", || {
        template = template_marked(host.id(), "mark=orphan");
        workers = template.map(children_of).unwrap_or_default();
        !workers.is_empty()
    })
    .await;
    host.kill().expect("killed");
    host.wait().expect("reaped");
    workers.extend(template);
    eventually("all are gone", || {
        workers.iter().all(|id| parent_of(*id).is_none())
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_dies_while_idle_costs_no_file() {
    let engine = start(&["mark=idle"]).await;
    let template = template_marked(std::process::id(), "mark=idle").expect("a template");
    for _ in 0..3 {
        let worker = children_of(template)[0];
        kill(worker);
        eventually("it is gone", || parent_of(worker).is_none()).await;
        assert_clean(&scan(&engine, "clean").await);
    }
    assert_eq!(engine.stats().crashed_total, 0);
}

#[tokio::test]
async fn a_worker_has_nothing_but_its_socket() {
    let engine = start(&["mark=confined"]).await;
    let template = template_marked(std::process::id(), "mark=confined").expect("a template");
    let worker = children_of(template)[0];
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).expect("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect(name)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("Threads:"), "1");
    if rustix::process::geteuid().is_root() {
        assert_eq!(field("Uid:"), "65534 65534 65534 65534");
        assert_eq!(field("Gid:"), "65534 65534 65534 65534");
        assert_eq!(field("Groups:"), "");
        for set in ["CapEff:", "CapPrm:"] {
            assert_eq!(field(set), "0000000000000000");
        }
        let descriptors = std::fs::read_dir(format!("/proc/{worker}/fd")).expect("descriptors");
        let mut targets: Vec<String> = descriptors
            .map(|fd| std::fs::read_link(fd.expect("entry").path()).expect("target"))
            .map(|target| target.to_string_lossy().into_owned())
            .collect();
        targets.sort();
        assert_eq!(targets.len(), 4, "{targets:?}");
        assert!(targets[..3].iter().all(|target| target == "/dev/null"));
        assert!(targets[3].starts_with("socket:"));
    }
    engine.stop().await;
}

#[tokio::test]
async fn no_worker_in_time_is_unavailable() {
    let mut spec = spec(&[]);
    spec.wait_max = Duration::from_millis(50);
    let engine = Engine::start(spec).await.expect("starts");
    let busy = tokio::spawn({
        let engine = engine.clone();
        async move { scan(&engine, "sleep 2000").await }
    });
    eventually("the worker is busy", || engine.stats().workers_idle == 0).await;
    let result = scan(&engine, "clean").await;
    let (reason, _) = result.incomplete.expect("incomplete");
    assert_eq!(reason, UnscannedReason::EngineUnavailable);
    assert_eq!(engine.stats().unavailable_total, 1);
    assert_clean(&busy.await.expect("joined"));
}

#[tokio::test]
async fn what_changes_underneath_is_reloaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let flag = folder.path().join("changed");
    let engine = start(&[&format!("changed-when={}", flag.display())]).await;
    assert_eq!(engine.stats().reloads_total, 0);
    std::fs::write(&flag, "").expect("written");
    eventually("reloaded", || engine.stats().reloads_total > 0).await;
    assert_clean(&scan(&engine, "clean").await);
}
