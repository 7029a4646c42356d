//! Runs rows on file systems, each in a process of its own, and draws the table.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::ground::Kind;
use crate::rows::{ELSEWHERE, ROWS, Row};

/// What to run.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) rows: Vec<u8>,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) without: Option<u8>,
    pub(crate) long: bool,
}

/// After this long a test hangs.
const HANGS: Duration = Duration::from_secs(120);
/// The same where a mitigation is off, and a hang is one way to fail.
const HANGS_WITHOUT: Duration = Duration::from_secs(12);
/// Tests at once: most of their time they wait.
const AT_ONCE: usize = 4;

struct Case {
    row: &'static Row,
    kind: Kind,
    without: bool,
}

struct Outcome {
    case: Case,
    /// What it said, where it failed.
    failure: Option<String>,
}

impl Outcome {
    /// With everything on it passes, with its mitigation off it fails.
    fn is_right(&self) -> bool {
        self.failure.is_some() == self.case.without
    }
}

/// Runs the chosen tests.
pub(crate) fn run(choice: &Choice) -> ExitCode {
    let cases = cases(choice);
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_case(case);
                    tell(&outcome);
                    outcomes.lock().expect("no panic").push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no panic");
    table(&outcomes);
    let wrong = outcomes.iter().filter(|it| !it.is_right()).count();
    let right = outcomes.len() - wrong;
    let word = if wrong == 0 { "ok" } else { "FAILED" };
    // As libtest says it, for whoever counts.
    println!(
        "\ntest result: {word}. {right} passed; {wrong} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if choice.without.is_some() {
        // Asked for: the failure is what is to be seen.
        let failed = outcomes.iter().any(|it| it.failure.is_some());
        return if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn cases(choice: &Choice) -> Vec<Case> {
    let mut cases = Vec::new();
    for row in ROWS {
        let wanted = match choice.without {
            Some(without) => without == row.number,
            None => choice.rows.is_empty() || choice.rows.contains(&row.number),
        };
        let kinds = row
            .kinds
            .iter()
            .filter(|kind| wanted && (choice.kinds.is_empty() || choice.kinds.contains(kind)));
        for (index, kind) in kinds.enumerate() {
            let mut add = |without| {
                cases.push(Case {
                    row,
                    kind: *kind,
                    without,
                });
            };
            if choice.without.is_none() {
                add(false);
            }
            if choice.without.is_some() || choice.long || index == 0 {
                add(true);
            }
        }
    }
    cases
}

fn run_case(case: &Case) -> Outcome {
    let (row, kind) = (case.row.number.to_string(), case.kind);
    // In a mount namespace of its own: what it mounts goes with it.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--alone", &row, kind.name()]);
    if case.without {
        command.args(["--without", &row]);
    }
    let child = command
        .env("RUST_BACKTRACE", "0")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare");
    let limit = if case.without { HANGS_WITHOUT } else { HANGS };
    Outcome {
        failure: failure_of(child, limit),
        case: Case { ..*case },
    }
}

fn failure_of(mut child: Child, limit: Duration) -> Option<String> {
    let group = Pid::from_child(&child);
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            break Some(status);
        }
        if start.elapsed() >= limit {
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // It, where it hangs, and whatever it left behind; an opener that waits can be killed.
    let _ = kill_process_group(group, Signal::KILL);
    let mut said = String::new();
    let _ = child.wait();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("{said}{}", signal_of(status))),
        None => Some(format!("{said}it hung")),
    }
}

fn signal_of(status: std::process::ExitStatus) -> String {
    status
        .signal()
        .map_or_else(String::new, |signal| format!("signal {signal}"))
}

fn tell(outcome: &Outcome) {
    let Case { row, kind, without } = &outcome.case;
    let name = format!("trap_{:02}_{}::{}", row.number, row.name, kind.name());
    let how = if *without { " (without)" } else { "" };
    let word = match (outcome.is_right(), without) {
        (true, false) => "ok",
        (true, true) => "ok, noticed",
        (false, false) => "FAILED",
        (false, true) => "FAILED: not noticed",
    };
    println!("test {name}{how} ... {word}");
    if let (false, Some(failure)) = (outcome.is_right(), &outcome.failure) {
        println!("{failure}");
    }
}

/// One row for each trap, one column for each file system.
fn table(outcomes: &[Outcome]) {
    let columns = || Kind::LOCAL.into_iter().chain([Kind::Fuse]);
    let cell = |row: &Row, kind: Kind| {
        let of = |without| {
            let is_it = |it: &&Outcome| {
                it.case.row.number == row.number
                    && it.case.kind == kind
                    && it.case.without == without
            };
            outcomes.iter().find(is_it)
        };
        let word = |outcome: Option<&Outcome>, good: &'static str| match outcome {
            None => "",
            Some(outcome) if outcome.is_right() => good,
            Some(_) => "FAILED",
        };
        format!("{}{}", word(of(false), "holds"), word(of(true), "*"))
    };
    print!("\n{:>4}  {:48}", "trap", "");
    columns().for_each(|kind| print!(" {:8}", kind.name()));
    println!();
    for row in ROWS {
        print!("{:>4}  {:48}", row.number, row.name.replace('_', " "));
        columns().for_each(|kind| print!(" {:8}", cell(row, kind)));
        println!();
    }
    for (number, name, place) in ELSEWHERE {
        println!("{number:>4}  {:48} {place}", name.replace('_', " "));
    }
    println!("      * its test fails without the mitigation");
}
