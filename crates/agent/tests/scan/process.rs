//! The command itself: exit codes, signals, standard output.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal};

use crate::appliance::{Greeting, Say, judge};
use crate::scene::{PATIENCE, Scene, json};

fn write_config(scene: &Scene) -> PathBuf {
    let config = &scene.config;
    let path = config.runtime_dir.join("agent.toml");
    let text = format!(
        "state_dir = {:?}\nruntime_dir = {:?}\n[appliance]\naddresses = {:?}\n",
        config.state_dir, config.runtime_dir, config.appliance.addresses
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn start(scene: &Scene, options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lazaret-agent"))
        .arg("--config")
        .arg(write_config(scene))
        .arg("scan")
        .args(options)
        .arg(scene.files())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(scene: &Scene, options: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = start(scene, options).wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn exit_codes_are_clamscans() {
    let scene = Scene::new(judge);
    scene.write("a", b"good");
    assert_eq!(run(&scene, &[]).0, Some(0));
    let evil = scene.write("b", b"EVIL");
    let (code, out, err) = run(&scene, &["--json"]);
    assert_eq!((code, err.as_str()), (Some(1), ""));
    assert!(!evil.exists());
    let lines = json(&out);
    assert_eq!(
        (&lines[0]["type"], &lines[1]["type"]),
        (&"found".into(), &"summary".into())
    );
    assert_eq!(lines.len(), 2);
    std::fs::remove_file(scene.config.state_dir.join("guest.pem")).unwrap();
    let (code, _, err) = run(&scene, &[]);
    assert_eq!(code, Some(2));
    assert!(err.contains("lazaret-agent enrol"), "{err}");
    assert_eq!(run(&scene, &["--max-size", "x"]).0, Some(2));
}

#[test]
fn the_bar_is_on_standard_error() {
    let scene = Scene::new(|check, content| {
        // Long enough for a line of it.
        if check.size == 1 {
            std::thread::sleep(std::time::Duration::from_secs(3));
        }
        judge(check, content)
    });
    scene.write("a", b"1");
    scene.write("b", b"good");
    let (code, out, err) = run(&scene, &["--progress", "always"]);
    assert_eq!(code, Some(0));
    assert!(!out.contains("ETA") && !out.contains('['), "{out}");
    assert!(err.contains(" files, ") && err.contains('['), "{err}");
}

/// Waits until the appliance was asked so often.
fn wait_for(count: &AtomicUsize, least: usize) {
    let has_come = || count.load(Ordering::SeqCst) >= least;
    assert!(testbed::wait_until(PATIENCE, has_come));
}

#[test]
fn interrupted_and_resumed() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let mut scene = Scene::new(move |check, content| {
        if seen.fetch_add(1, Ordering::SeqCst) < 50 {
            judge(check, content)
        } else {
            Say::Nothing
        }
    });
    for number in 0..100 {
        scene.write(format!("{number:03}"), format!("good {number}").as_bytes());
    }
    let child = start(&scene, &["--json"]);
    wait_for(&count, 51);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(json(&out)[0]["halted"], "stopped");
    let journal = &scene.journals()[0];
    assert_eq!(
        journal.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    scene.replace_appliance(Greeting::default(), judge);
    let (code, out, _) = run(&scene, &["--json", "--resume"]);
    assert_eq!(code, Some(0));
    let lines = json(&out);
    assert_eq!(
        (&lines[0]["files"], &lines[0]["complete"]),
        (&100.into(), &true.into())
    );
    assert!(scene.asked().len() < 100, "it began anew");
}
