//! Counts what passed and failed over all steps.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

/// Passed and failed, and a line for each step.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    steps: Vec<String>,
}

impl Tally {
    /// Runs a step that passes or fails as one.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce() -> Result<bool>) {
        let start = begin(name);
        let good = run().unwrap_or_else(|error| {
            eprintln!("{error:#}");
            false
        });
        self.add(name, start, u64::from(good), u64::from(!good));
    }

    /// Runs test programs, or cargo over them, and counts each test. A run without any test is a
    /// failure.
    pub(crate) fn tests(&mut self, name: &str, commands: &mut [Command]) -> Result<()> {
        let start = begin(name);
        let (mut passed, mut failed, mut good) = (0, 0, true);
        for command in commands {
            let counts = count(command)?;
            passed += counts.0;
            failed += counts.1;
            good &= counts.2;
        }
        // It did not compile, was killed, or ran nothing.
        if failed == 0 && (!good || passed == 0) {
            failed = 1;
        }
        self.add(name, start, passed, failed);
        Ok(())
    }

    /// Prints the steps, then the sum as the very last line.
    pub(crate) fn finish(self) -> ExitCode {
        println!("\n{}", self.steps.join("\n"));
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    fn add(&mut self, name: &str, start: Instant, passed: u64, failed: u64) {
        self.passed += passed;
        self.failed += failed;
        let seconds = start.elapsed().as_secs();
        let mark = if failed == 0 { "ok  " } else { "FAIL" };
        let line = format!("{mark} {name}: {passed} passed, {failed} failed ({seconds} s)");
        eprintln!("== {line}");
        self.steps.push(line);
    }
}

/// Tests passed and failed, and whether the command calls itself a success.
fn count(command: &mut Command) -> Result<(u64, u64, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let output = child.stdout.take().context("no output")?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some((more_passed, more_failed)) = parse(&line) {
            passed += more_passed;
            failed += more_failed;
        }
    }
    Ok((passed, failed, child.wait()?.success()))
}

fn begin(name: &str) -> Instant {
    eprintln!("== {name}");
    Instant::now()
}

/// Reads `test result: ok. 3 passed; 1 failed; …`.
fn parse(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = counts.split("; ");
    let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines() {
        let line = "test result: FAILED. 19 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.08s";
        assert_eq!(parse(line), Some((19, 2)));
        assert_eq!(parse("test a ... ok"), None);
    }

    #[test]
    fn silence_is_a_failure() {
        let mut tally = Tally::default();
        let mut run = |name: &str, program: &str| {
            let mut commands = [Command::new(program)];
            tally.tests(name, &mut commands).expect("ran");
        };
        run("nothing", "true");
        run("broken", "false");
        assert_eq!((tally.passed, tally.failed), (0, 2));
        let mut echo = Command::new("echo");
        echo.arg("test result: ok. 3 passed; 0 failed; 0 ignored");
        tally
            .tests("three", std::slice::from_mut(&mut echo))
            .expect("ran");
        assert_eq!((tally.passed, tally.failed), (3, 2));
    }
}
