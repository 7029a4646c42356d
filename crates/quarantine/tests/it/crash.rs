//! The process is killed, or a step fails, at every step there is.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use model::ItemId;
use quarantine::{Steps, Vault};

use crate::scene::{Everything, Scene, everything, items, limits, names};

/// Kills this process with SIGKILL just before its n-th step.
struct KillAt(usize, AtomicUsize);

impl Steps for KillAt {
    fn next(&self, _step: &'static str) -> io::Result<()> {
        if self.1.fetch_add(1, Ordering::SeqCst) + 1 == self.0 {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
        }
        Ok(())
    }
}

/// Fails the steps from `first` to `last`.
struct FailFrom {
    first: usize,
    last: usize,
    count: AtomicUsize,
}

impl Steps for FailFrom {
    fn next(&self, _step: &'static str) -> io::Result<()> {
        let step = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        if (self.first..=self.last).contains(&step) {
            return Err(io::Error::other("fails on purpose"));
        }
        Ok(())
    }
}

/// What a child process does in a scene.
#[derive(Clone, Copy, Debug)]
enum Act {
    Open,
    Take,
    Delete,
    Restore,
    Discard,
}

/// The child's side of [`run_killed`]; does nothing useful by itself.
#[test]
#[ignore = "run as a child process by the other tests"]
fn child() {
    let variable = |name| std::env::var(name).expect("run by the other tests only");
    let file = variable("SCENE_FILE");
    let file = Path::new(&file);
    let steps = KillAt(variable("SCENE_STEP").parse().unwrap(), AtomicUsize::new(0));
    let vault_dir = variable("SCENE_VAULT");
    let vault = Vault::open_stepwise(Path::new(&vault_dir), limits(), Box::new(steps)).unwrap();
    let digest = variable("SCENE_DIGEST").parse().unwrap();
    let id = || items(&vault)[0].id;
    match variable("SCENE_ACT").as_str() {
        "Open" => {}
        "Take" => drop(vault.take(file, digest, &[], SystemTime::now()).unwrap()),
        "Delete" => vault.delete(file, digest).unwrap(),
        "Restore" => drop(vault.restore(id(), None).unwrap()),
        "Discard" => vault.discard(id()).unwrap(),
        act => panic!("{act}"),
    }
}

/// Runs an act in a process of its own that is killed at that step. True: it was killed; false: it
/// came to its end before.
fn run_killed(scene: &Scene, act: Act, step: usize) -> bool {
    let status: ExitStatus = Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--quiet"])
        .env("SCENE_FILE", scene.file())
        .env("SCENE_VAULT", scene.vault_dir())
        .env("SCENE_DIGEST", scene.digest().to_string())
        .env("SCENE_ACT", format!("{act:?}"))
        .env("SCENE_STEP", step.to_string())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    match status.signal() {
        Some(9) => true,
        _ => {
            assert!(status.success(), "{act:?} at step {step}: {status}");
            false
        }
    }
}

fn content() -> Vec<u8> {
    (0..150_000_u32).map(|i| (i % 251) as u8).collect()
}

/// In how many places the content lies, counting those that only a recovery makes use of.
fn places(scene: &Scene) -> usize {
    let guest = scene
        .names()
        .iter()
        .filter(|name| fs::read(scene.home().join(name)).is_ok_and(|bytes| bytes == scene.content))
        .count();
    let items = scene.vault_dir().join("items");
    guest
        + if items.exists() {
            names(&items).len()
        } else {
            0
        }
}

/// After a recovery the file is either in its place or an item, whole, with everything on it.
fn expect_one_or_the_other(scene: &Scene, vault: &Vault, before: &Everything) -> Option<ItemId> {
    scene.expect_nothing_under_way();
    let items = items(vault);
    if scene.file().exists() {
        assert_eq!(&everything(&scene.file()), before);
        assert!(items.is_empty(), "in both places after a recovery");
        return None;
    }
    assert!(scene.names().is_empty());
    assert_eq!(items.len(), 1, "lost");
    Some(items[0].id)
}

/// Kills a take at every step, the recovery from it at every step, then recovers for good.
#[test]
fn take_killed_at_every_step() {
    let mut steps = 0;
    loop {
        steps += 1;
        let mut recovery_steps = 0;
        loop {
            recovery_steps += 1;
            let scene = Scene::ornate(&content());
            let before = everything(&scene.file());
            if !run_killed(&scene, Act::Take, steps) {
                assert!(steps > 8, "only {steps} steps");
                return;
            }
            assert!(places(&scene) >= 1, "lost at step {steps}");
            let killed_again = run_killed(&scene, Act::Open, recovery_steps);
            assert!(places(&scene) >= 1, "lost at {steps}, {recovery_steps}");
            let vault = scene.vault();
            let id = expect_one_or_the_other(&scene, &vault, &before);
            let id = id.unwrap_or_else(|| scene.take(&vault).unwrap().id);
            vault.restore(id, None).unwrap();
            assert_eq!(everything(&scene.file()), before);
            if !killed_again {
                break;
            }
        }
    }
}

#[test]
fn restore_killed_at_every_step() {
    let mut steps = 0;
    loop {
        steps += 1;
        let mut recovery_steps = 0;
        loop {
            recovery_steps += 1;
            let scene = Scene::ornate(&content());
            let before = everything(&scene.file());
            scene.take(&scene.vault()).unwrap();
            if !run_killed(&scene, Act::Restore, steps) {
                assert!(steps > 8, "only {steps} steps");
                return;
            }
            assert!(places(&scene) >= 1, "lost at step {steps}");
            let killed_again = run_killed(&scene, Act::Open, recovery_steps);
            assert!(places(&scene) >= 1, "lost at {steps}, {recovery_steps}");
            let vault = scene.vault();
            if let Some(id) = expect_one_or_the_other(&scene, &vault, &before) {
                vault.restore(id, None).unwrap();
            }
            assert_eq!(everything(&scene.file()), before);
            if !killed_again {
                break;
            }
        }
    }
}

#[test]
fn delete_killed_at_every_step() {
    for step in 1.. {
        let scene = Scene::ornate(&content());
        let before = everything(&scene.file());
        if !run_killed(&scene, Act::Delete, step) {
            assert!(step > 3, "only {step} steps");
            assert!(scene.names().is_empty());
            return;
        }
        let vault = scene.vault();
        scene.expect_nothing_under_way();
        if scene.file().exists() {
            assert_eq!(everything(&scene.file()), before);
            vault.delete(&scene.file(), scene.digest()).unwrap();
        }
        assert!(scene.names().is_empty());
    }
}

#[test]
fn discard_killed_at_every_step() {
    for step in 1.. {
        let scene = Scene::new(&content());
        scene.take(&scene.vault()).unwrap();
        if !run_killed(&scene, Act::Discard, step) {
            assert!(step > 1, "no step at all");
            assert!(items(&scene.vault()).is_empty());
            return;
        }
        let vault = scene.vault();
        vault.discard(items(&vault)[0].id).unwrap();
    }
}

/// A file changed between a crash and the recovery is not the file of the order any more.
#[test]
fn recovery_leaves_changed_files_alone() {
    for step in 1.. {
        let scene = Scene::new(&content());
        if !run_killed(&scene, Act::Take, step) {
            return;
        }
        // Whatever names the content has now get other content.
        for name in scene.names() {
            fs::write(scene.home().join(name), b"written after the crash").unwrap();
        }
        let had_file = !scene.names().is_empty();
        let vault = scene.vault();
        scene.expect_nothing_under_way();
        if had_file {
            let file = fs::read(scene.file()).unwrap();
            assert_eq!(file, b"written after the crash", "step {step}");
        }
        let copies = items(&vault).len();
        assert!(had_file || copies == 1, "lost at step {step}");
    }
}

/// One step fails and everything after it works: nothing has changed, or all is done.
#[test]
fn take_with_each_step_failing_once() {
    check_failures(|step| (step, step), true);
}

/// From one step on nothing works any more: the next open makes good.
#[test]
fn take_with_all_steps_failing_from_each_on() {
    check_failures(|step| (step, usize::MAX), false);
}

fn check_failures(range: impl Fn(usize) -> (usize, usize), clean_at_once: bool) {
    for step in 1.. {
        let scene = Scene::ornate(&content());
        let before = everything(&scene.file());
        let (first, last) = range(step);
        let count = AtomicUsize::new(0);
        let vault = scene.vault_with(FailFrom { first, last, count });
        let taken = scene.take(&vault);
        assert!(places(&scene) >= 1, "lost at step {step}");
        if clean_at_once {
            assert_eq!(taken.is_ok(), !scene.file().exists(), "step {step}");
            assert_eq!(taken.is_ok(), items(&vault).len() == 1, "step {step}");
        }
        drop(vault);
        let vault = scene.vault();
        let item = expect_one_or_the_other(&scene, &vault, &before);
        if let Ok(taken) = &taken {
            assert_eq!(item, Some(taken.id), "step {step}");
        }
        let all_steps = step > 25;
        if all_steps {
            assert!(taken.is_ok(), "step {step} does not exist");
            return;
        }
    }
}

#[test]
fn restore_with_each_step_failing_once() {
    for step in 1..25 {
        let scene = Scene::ornate(&content());
        let before = everything(&scene.file());
        let id = scene.take(&scene.vault()).unwrap().id;
        let count = AtomicUsize::new(0);
        let vault = scene.vault_with(FailFrom {
            first: step,
            last: step,
            count,
        });
        let restored = vault.restore(id, None);
        assert!(places(&scene) >= 1, "lost at step {step}");
        assert_eq!(restored.is_ok(), scene.file().exists(), "step {step}");
        drop(vault);
        let vault = scene.vault();
        if let Some(id) = expect_one_or_the_other(&scene, &vault, &before) {
            vault.restore(id, None).unwrap();
        }
        assert_eq!(everything(&scene.file()), before);
    }
}
