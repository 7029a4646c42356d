//! The trap suite: what the kernel does that would let bytes through unjudged, or stop the machine,
//! and what this crate does about it. One test for each row of the design's table of kernel traps
//! on each local file system, and each of them again with that one mitigation switched off, when it
//! must fail. Ends with a table.
//!
//! Each test runs in a process and a mount namespace of its own, so that one that hangs can be
//! ended and leaves nothing behind. Needs root.
//!
//! `traps [--long] [--without ROW] [ROW|FILE SYSTEM]…`. Without `--long` the mitigations are switched
//! off on one file system only. `--without ROW` runs the row's tests without its mitigation: they
//! fail.

#[path = "../it/fuse.rs"]
mod fuse;
#[path = "../it/gate.rs"]
mod gate;
mod ground;
#[path = "../it/opener.rs"]
mod opener;
#[path = "../it/raw.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod raw;
mod rows;
#[path = "../it/scratch.rs"]
mod scratch;
mod suite;

use std::process::ExitCode;

use ground::Kind;
use rows::{ROWS, Row};
use suite::{Choice, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut choice = Choice::default();
    let mut alone = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--long" => choice.long = true,
            "--alone" => alone = true,
            "--without" => {
                let row = arguments.next().and_then(|row| row.parse().ok());
                choice.without = Some(row.expect("--without ROW"));
            }
            // Of cargo's and of libtest's, which mean nothing here.
            other if other.starts_with("--") => {}
            other => match (other.parse().ok(), Kind::named(other)) {
                (Some(row), _) => choice.rows.push(row),
                (None, Some(kind)) => choice.kinds.push(kind),
                (None, None) => panic!("neither a row nor a file system: {other}"),
            },
        }
    }
    if alone {
        return run_alone(&choice);
    }
    run(&choice)
}

/// One test, in a process of its own: a panic fails it.
fn run_alone(choice: &Choice) -> ExitCode {
    let is_chosen = |row: &&Row| choice.rows.contains(&row.number);
    let row = ROWS.iter().find(is_chosen).expect("a row");
    if let Some(without) = choice.without {
        fanotify::without::switch_off(without);
    }
    let kind = *choice.kinds.first().expect("a file system");
    (row.test)(&kind.make());
    ExitCode::SUCCESS
}
