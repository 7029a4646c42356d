//! Appliances that fail, and the agent beside the scan.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::scan::{ScanError, scan};
use model::{Outcome, UnscannedReason};

use crate::appliance::{Say, judge, reply};
use crate::scene::{PATIENCE, Scene, parse};

#[test]
fn a_link_that_breaks_again_and_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let scene = Scene::new(move |check, content| {
        if count.fetch_add(1, Ordering::SeqCst) % 20 == 10 {
            return Say::HangUp;
        }
        judge(check, content)
    });
    for number in 0..60 {
        scene.write(number.to_string(), &vec![number as u8; 1 + number * 3000]);
    }
    scene.write("evil", b"EVIL");
    let (ended, out) = scene.scan(&[]);
    assert_eq!((ended.totals.clean, ended.totals.found), (60, 1), "{out}");
    assert!(scene.appliance.seen.hellos.lock().unwrap().len() > 3);
}

#[test]
fn no_appliance_at_all() {
    let mut scene = Scene::new(judge);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    scene.config.appliance.addresses = vec![nobody.local_addr().unwrap().to_string()];
    drop(nobody);
    scene.patience = Duration::from_millis(300);
    let (ended, _) = scene.try_scan(&[]);
    let error = ended.unwrap_err();
    assert!(matches!(error, ScanError::NotBegun(_)), "{error}");
    assert!(error.to_string().contains("no appliance for"), "{error}");
}

#[test]
fn a_guest_that_is_not_enrolled() {
    let scene = Scene::new(judge);
    std::fs::remove_file(scene.config.state_dir.join("guest.pem")).unwrap();
    let (ended, _) = scene.try_scan(&[]);
    assert!(matches!(ended, Err(ScanError::Credentials(_))));
}

#[test]
fn an_appliance_that_goes_away_for_good() {
    let gone = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicUsize::new(0));
    let mut scene = Scene::new(move |check, content| {
        if gone.load(Ordering::SeqCst) || count.fetch_add(1, Ordering::SeqCst) == 20 {
            gone.store(true, Ordering::SeqCst);
            // It accepts sessions again and closes each with its first check.
            return Say::HangUp;
        }
        judge(check, content)
    });
    scene.patience = Duration::from_secs(5);
    for number in 0..100 {
        scene.write(number.to_string(), format!("good {number}").as_bytes());
    }
    let stop = scene.stop.clone();
    let files = scene.files();
    let args = parse(&[files.to_str().unwrap()]);
    let setup = scene.setup();
    let scanning = std::thread::spawn(move || scan(&args, &setup, &stop, Box::new(io::sink())));
    let hellos = || scene.appliance.seen.hellos.lock().unwrap().len();
    assert!(testbed::wait_until(PATIENCE, || hellos() >= 3));
    // Now it accepts nothing any more.
    let Scene { appliance, .. } = scene;
    drop(appliance);
    let ended = scanning.join().unwrap().unwrap();
    assert!(ended.halted.unwrap().contains("no appliance for"));
    assert!(ended.totals.files < 100);
    assert_eq!(
        ended.totals.unscanned, 0,
        "a lost link is no property of a file"
    );
}

#[test]
fn what_passes_is_tried_again() {
    let asked = Mutex::new(std::collections::HashMap::<Vec<u8>, usize>::new());
    let scene = Scene::new(move |check, content| {
        let mut asked = asked.lock().unwrap();
        let count = asked.entry(check.blake3.clone()).or_default();
        *count += 1;
        if *count < 3 {
            let overloaded = Outcome::unscanned(UnscannedReason::Overloaded);
            return Say::Reply(reply(check, overloaded));
        }
        judge(check, content)
    });
    scene.write("a", b"good");
    scene.write("b", b"EVIL");
    let (ended, _) = scene.scan(&["--no-removal"]);
    assert_eq!((ended.totals.clean, ended.totals.found), (1, 1));
}

#[test]
fn what_does_not_pass_is_unscanned() {
    let scene = Scene::new(|check, _| {
        Say::Reply(reply(check, Outcome::unscanned(UnscannedReason::Changed)))
    });
    scene.write("log", b"always changing");
    let (ended, out) = scene.scan(&[]);
    assert_eq!((ended.exit_code(), ended.totals.unscanned), (2, 1));
    assert!(out.contains("log: changed UNSCANNED"), "{out}");
}

#[test]
fn results_that_nobody_reads_end_the_scan() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let scene = Scene::new(judge);
    scene.write("file", b"EVIL");
    let files = scene.files();
    let args = parse(&["--no-removal", files.to_str().unwrap()]);
    let ended = scan(&args, &scene.setup(), &scene.stop, Box::new(Closed)).unwrap();
    assert!(ended.halted.unwrap().contains("cannot print results"));
}

/// A running agent, as far as its control socket goes.
struct FakeAgent {
    excluded: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl FakeAgent {
    fn start(scene: &Scene, openers: usize) -> Self {
        let listener = UnixListener::bind(scene.config.control_socket()).unwrap();
        let (excluded, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let agent = Self {
            excluded: Arc::clone(&excluded),
            asked: Arc::clone(&asked),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (excluded, asked) = (Arc::clone(&excluded), Arc::clone(&asked));
                let stream = stream.unwrap();
                std::thread::spawn(move || answer(&stream, openers, &excluded, &asked));
            }
        });
        agent
    }
}

fn answer(stream: &UnixStream, openers: usize, excluded: &AtomicUsize, asked: &AtomicUsize) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut writer = stream;
    if line.contains("exclude_me") {
        excluded.fetch_add(1, Ordering::SeqCst);
        writeln!(writer, "{{\"excluded\":1}}").unwrap();
        let _until_it_ends = reader.read_line(&mut line);
        excluded.fetch_sub(1, Ordering::SeqCst);
    } else {
        asked.fetch_add(1, Ordering::SeqCst);
        writeln!(writer, "{{\"openers\":{openers}}}").unwrap();
    }
}

#[test]
fn the_agent_is_told_before_a_file_is_opened() {
    let excluded = Arc::new(std::sync::OnceLock::<Arc<AtomicUsize>>::new());
    let scene = Scene::new({
        let excluded = Arc::clone(&excluded);
        move |check, content| {
            assert_eq!(excluded.get().unwrap().load(Ordering::SeqCst), 1);
            judge(check, content)
        }
    });
    let agent = FakeAgent::start(&scene, 0);
    excluded.set(Arc::clone(&agent.excluded)).unwrap();
    scene.write("file", b"good");
    assert_eq!(scene.scan(&[]).0.exit_code(), 0);
    let is_over = || agent.excluded.load(Ordering::SeqCst) == 0;
    assert!(testbed::wait_until(PATIENCE, is_over));
}

#[test]
fn openers_that_always_wait_slow_it_down_but_do_not_stop_it() {
    let scene = Scene::new(|check, content| {
        // Long enough for the scan to have heard of the openers.
        if check.size == 1 {
            std::thread::sleep(Duration::from_millis(600));
        }
        judge(check, content)
    });
    let agent = FakeAgent::start(&scene, 3);
    scene.write("a", b"1");
    scene.write("b", b"EVIL");
    let (ended, _) = scene.scan(&["--no-removal"]);
    assert_eq!((ended.totals.files, ended.totals.found), (2, 1));
    assert!(agent.asked.load(Ordering::SeqCst) > 0);
}
