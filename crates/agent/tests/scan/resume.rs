//! Scans that stop, are killed, and go on.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent::scan::{Setup, scan};
use daemon::signal::Stop;
use model::Generation;

use crate::appliance::{Greeting, Say, judge};
use crate::scene::{Scene, parse};

const FILES: usize = 300;
/// What may be asked twice: what comes after a file that a worker is long about.
const TWICE_MAX: usize = FILES / 3;

fn fill(scene: &Scene) {
    for number in 0..FILES {
        let evil = if number % 100 == 50 { "EVIL" } else { "good" };
        let content = format!("{evil} {number}");
        scene.write(format!("d{}/{number}", number % 7), content.as_bytes());
    }
}

/// A scene whose scan is stopped at its 150th check.
fn stopped_midway() -> (Scene, usize) {
    let stop = Arc::new(std::sync::OnceLock::<Stop>::new());
    let count = Arc::new(AtomicUsize::new(0));
    let scene = Scene::new({
        let stop = Arc::clone(&stop);
        move |check, content| {
            if count.fetch_add(1, Ordering::SeqCst) == 150 {
                stop.get().unwrap().stop();
            }
            judge(check, content)
        }
    });
    stop.set(scene.stop.clone()).unwrap();
    fill(&scene);
    let (ended, out) = scene.scan(&["--no-removal"]);
    assert_eq!(ended.halted.as_deref(), Some("stopped"));
    assert!(
        out.contains("Incomplete: stopped; --resume goes on from here"),
        "{out}"
    );
    assert_eq!(scene.journals().len(), 1);
    let asked = scene.asked().len();
    assert!(asked < FILES, "it was not stopped");
    (scene, asked)
}

#[test]
fn stopped_and_resumed() {
    let (mut scene, asked) = stopped_midway();
    let first: BTreeSet<_> = scene.asked().into_iter().collect();
    scene.replace_appliance(Greeting::default(), judge);
    let (ended, _) = scene.scan(&["--no-removal", "--resume"]);
    assert_eq!(ended.halted, None);
    let second: BTreeSet<_> = scene.asked().into_iter().collect();
    assert_eq!(
        first.union(&second).count(),
        FILES,
        "some were never asked about"
    );
    let twice = first.intersection(&second).count();
    assert!(twice <= TWICE_MAX && asked + second.len() == FILES + twice);
    // The counts are those of the whole scan, findings of the first run included.
    assert_eq!((ended.totals.files, ended.totals.found), (FILES as u64, 3));
    assert_eq!(ended.exit_code(), 1);
    assert!(scene.journals().is_empty());
}

#[test]
fn without_resume_it_begins_anew() {
    let (mut scene, _) = stopped_midway();
    scene.replace_appliance(Greeting::default(), judge);
    let (ended, _) = scene.scan(&["--no-removal"]);
    assert_eq!(
        (ended.totals.files, scene.asked().len()),
        (FILES as u64, FILES)
    );
}

#[test]
fn under_other_rules_or_options_it_begins_anew() {
    let (mut scene, _) = stopped_midway();
    scene.replace_appliance(Greeting::default(), judge);
    scene.scan(&["--no-removal", "--resume", "--exclude", "nothing"]);
    assert_eq!(scene.asked().len(), FILES);
    let greeting = Greeting {
        generation: Generation([2; 16]),
        ..Greeting::default()
    };
    scene.replace_appliance(greeting, judge);
    let (ended, _) = scene.scan(&["--no-removal", "--resume"]);
    assert_eq!(
        (ended.totals.files, scene.asked().len()),
        (FILES as u64, FILES)
    );
}

#[test]
fn two_scans_of_the_same_paths_at_once_are_refused() {
    let entered = Arc::new(std::sync::Barrier::new(2));
    let leave = Arc::new(std::sync::Barrier::new(2));
    let scene = Scene::new({
        let (entered, leave) = (Arc::clone(&entered), Arc::clone(&leave));
        move |check, content| {
            entered.wait();
            leave.wait();
            judge(check, content)
        }
    });
    scene.write("file", b"good");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| scene.scan(&[]));
        entered.wait();
        let (second, _) = scene.try_scan(&[]);
        let error = second.unwrap_err().to_string();
        assert!(
            error.contains("a scan of the same paths is running"),
            "{error}"
        );
        leave.wait();
        assert_eq!(first.join().unwrap().0.exit_code(), 0);
    });
}

/// The child's side of the next test.
#[test]
#[ignore = "run as a child process by the next test"]
fn child() {
    let variable = |name| std::env::var(name).expect("run by another test only");
    let mut config = agent::AgentConfig {
        state_dir: variable("SCENE_STATE").into(),
        runtime_dir: variable("SCENE_STATE").into(),
        ..agent::AgentConfig::default()
    };
    config.appliance.addresses = vec![variable("SCENE_APPLIANCE")];
    let setup = Setup {
        save_after: std::time::Duration::ZERO,
        ..Setup::of(&config)
    };
    let args = parse(&["--no-removal", &variable("SCENE_FILES")]);
    let stop = Stop::manual().unwrap();
    scan(&args, &setup, &stop, Box::new(std::io::sink())).unwrap();
}

#[test]
fn killed_and_resumed() {
    let count = Arc::new(AtomicUsize::new(0));
    let mut scene = Scene::new(move |check, content| {
        if count.fetch_add(1, Ordering::SeqCst) < 150 {
            judge(check, content)
        } else {
            Say::Nothing
        }
    });
    fill(&scene);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["resume::child", "--exact", "--ignored", "--quiet"])
        .env("SCENE_STATE", &scene.config.state_dir)
        .env("SCENE_APPLIANCE", scene.appliance.addr.to_string())
        .env("SCENE_FILES", scene.files())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while scene.journals().is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let first: BTreeSet<_> = scene.asked().into_iter().collect();
    scene.replace_appliance(Greeting::default(), judge);
    let (ended, _) = scene.scan(&["--no-removal", "--resume"]);
    let second: BTreeSet<_> = scene.asked().into_iter().collect();
    assert_eq!(first.union(&second).count(), FILES);
    assert!(second.len() < FILES, "it began anew");
    assert_eq!((ended.totals.files, ended.totals.found), (FILES as u64, 3));
}
