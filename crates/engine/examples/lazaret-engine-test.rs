//! An engine that does what a file tells it to: the tests' stand-in for a worker that a file has
//! taken over. Not part of the product.

#![expect(
    unsafe_code,
    reason = "crashing, and using descriptors it does not own, is its purpose"
)]

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use engine::worker::{Input, PartialInput, Template, Worker, ask_for, ask_for_layout};
use engine::{Sandbox, SyscallRule};
use prost::Message;
use proto::v1;

#[derive(Default)]
struct Puppet {
    generation: u8,
    changed: Option<PathBuf>,
    worker_error: Option<String>,
    dies_at_birth: bool,
    may_open: bool,
    filter: Option<String>,
}

struct Actor;

impl Template for Puppet {
    type Worker = Actor;

    fn ready(&self) -> v1::EngineReady {
        v1::EngineReady {
            name: "test".to_owned(),
            version: "1".to_owned(),
            generation: vec![self.generation; 16],
            rules: 1,
            ..Default::default()
        }
    }

    fn worker(&self) -> Result<Actor, String> {
        if self.dies_at_birth {
            std::process::abort();
        }
        self.worker_error.clone().map_or(Ok(Actor), Err)
    }

    fn sandbox(&self) -> Sandbox {
        let mut sandbox = Sandbox {
            reserved_bytes: 64 << 20,
            ..Sandbox::default()
        };
        if self.may_open {
            sandbox.syscalls.push(SyscallRule::any(libc::SYS_openat));
        }
        sandbox
    }

    fn filter(&self) -> Result<Option<Vec<u8>>, String> {
        match self.filter.as_deref() {
            Some("fail") => Err("no filter can be built".to_owned()),
            Some("huge") => Ok(Some(vec![0; engine::worker::FILTER_MAX_BYTES + 1])),
            filter => Ok(filter.map(|text| text.as_bytes().to_vec())),
        }
    }

    fn check_interval(&self) -> Option<Duration> {
        self.changed.as_ref().map(|_| Duration::from_millis(20))
    }

    fn changed(&mut self) -> bool {
        self.changed.as_ref().is_some_and(|path| path.exists())
    }
}

impl Worker for Actor {
    fn scan(&mut self, job: &v1::ScanJob, input: &Input<'_>, report: &mut v1::ScanReport) {
        let bytes = match input.bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                report.error = error;
                return;
            }
        };
        report.member_bytes_judged = bytes.len() as u64;
        let text = String::from_utf8_lossy(bytes.get(..200).unwrap_or(bytes));
        let line = text.lines().next().unwrap_or_default();
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "detect" => report.detections.push(detection(rest)),
            "many" => {
                let count = rest.parse().unwrap_or(0);
                report.detections = vec![detection("many"); count];
            }
            "incomplete" => {
                report.incomplete = Some(v1::Unscanned {
                    reason: v1::UnscannedReason::Encrypted.into(),
                    detail: rest.to_owned(),
                });
            }
            "path" => {
                let context = job.context.as_ref();
                let path = context.map(|context| context.path.clone());
                let mut found = detection("path");
                found.path_inside.extend(path);
                report.detections.push(found);
            }
            "last" => report.last = true,
            "try-open" => report.detections.push(detection(&opened(rest))),
            "detect-and-panic" => {
                report.detections.push(detection(rest));
                panic!("too late");
            }
            _ => misbehave(verb, rest),
        }
    }

    fn scan_partial(
        &mut self,
        job: &v1::ScanJob,
        input: PartialInput<'_>,
        report: &mut v1::ScanReport,
    ) {
        let view = match input.view() {
            Ok(view) => view,
            Err(error) => {
                report.error = error;
                return;
            }
        };
        let line = String::from_utf8_lossy(view.bytes().get(..200).unwrap_or(view.bytes()));
        let line = line.lines().next().unwrap_or_default();
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let mut step = v1::PartialStep::default();
        match verb {
            "ask" => step.ask = ranges(rest),
            "whole" => step.whole = rest.to_owned(),
            "detect" => report.detections.push(detection(rest)),
            // Reads the pages that start here, known or not, and asks for what it was seen to read.
            "read" => {
                let Ok(guarded) = view.guarded() else {
                    report.partial = Some(ask_for_layout());
                    return;
                };
                for range in ranges(rest) {
                    let at = usize::try_from(range.offset).unwrap_or(0);
                    std::hint::black_box(guarded.get(at).copied());
                }
                step = ask_for(&view.touched().expect("the kernel tells"));
            }
            // What no honest worker sends: these ranges as they are.
            "lie" => {
                let step = v1::PartialStep {
                    ask: ranges(rest),
                    ..Default::default()
                };
                let report = v1::ScanReport {
                    job_id: job.job_id,
                    partial: Some(step),
                    ..Default::default()
                };
                send_raw(&report.encode_to_vec());
                std::thread::sleep(Duration::from_secs(3600));
            }
            // However it comes.
            "lay-out" => step.lay_out = true,
            "silent" => return,
            _ => misbehave(verb, rest),
        }
        report.partial = Some(step);
    }
}

/// `10+5,20+1`.
fn ranges(text: &str) -> Vec<v1::ByteRange> {
    let numbers = text.split(',').filter_map(|range| range.split_once('+'));
    let number = |text: &str| text.parse().unwrap_or(0);
    let read = numbers.map(|(offset, length)| range(number(offset), number(length)));
    read.collect()
}

fn range(offset: u64, length: u64) -> v1::ByteRange {
    v1::ByteRange { offset, length }
}

fn detection(name: &str) -> v1::Detection {
    v1::Detection {
        name: name.to_owned(),
        ..Default::default()
    }
}

fn opened(path: &str) -> String {
    match std::fs::File::open(path) {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.kind().to_string(),
    }
}

fn misbehave(verb: &str, rest: &str) {
    match verb {
        "segv" => {
            // SAFETY: none; the process is to die of it.
            unsafe { std::ptr::null::<u8>().add(1).read_volatile() };
        }
        "abort" => std::process::abort(),
        "exit" => std::process::exit(7),
        "panic" => panic!("told to: {rest}"),
        "overflow" => {
            std::hint::black_box(recurse(0));
        }
        "hang" => std::thread::sleep(Duration::from_secs(3600)),
        "spin" => while std::hint::black_box(true) {},
        "sleep" => std::thread::sleep(Duration::from_millis(rest.parse().unwrap_or(0))),
        "allocate" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(std::hint::black_box(vec![1u8; 1 << 20]));
            }
        }
        "open" => drop(std::fs::File::open(rest)),
        "tcp" => drop(std::net::TcpStream::connect(rest)),
        "fork" => drop(std::process::Command::new("/bin/true").spawn()),
        "exec" => {
            let error = std::os::unix::process::CommandExt::exec(&mut std::process::Command::new(
                "/bin/true",
            ));
            drop(error);
        }
        "thread" => drop(std::thread::spawn(|| ())),
        "kill-parent" => {
            let parent = rustix::process::getppid().expect("a parent");
            let _ = rustix::process::kill_process(parent, rustix::process::Signal::KILL);
        }
        "send" => {
            let bytes = match rest {
                "garbage" => vec![0xff; 100],
                "oversized" => vec![8; proto::ENGINE_PACKET_MAX_BYTES + 1],
                "other-job" => vec![8, 99],
                // job_id 1, one detection with an empty name
                "nameless" => vec![8, 1, 0x12, 0],
                // job_id 1, 65 detections named "a"
                _ => [vec![8, 1], [0x12, 3, 0x0a, 1, b'a'].repeat(65)].concat(),
            };
            send_raw(&bytes);
            std::thread::sleep(Duration::from_secs(3600));
        }
        _ => {}
    }
}

fn recurse(depth: u64) -> u64 {
    let ballast = std::hint::black_box([depth; 64]);
    if depth == u64::MAX {
        return 0;
    }
    recurse(depth + 1) + ballast[3]
}

/// Writes to the job socket behind the back of the engine crate.
fn send_raw(bytes: &[u8]) {
    for number in 3..16 {
        // SAFETY: as a file that has taken over the process would: a closed one fails.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let iov = [IoSlice::new(bytes)];
        let mut none = rustix::net::SendAncillaryBuffer::default();
        let _ = rustix::net::sendmsg(fd, &iov, &mut none, rustix::net::SendFlags::NOSIGNAL);
    }
}

fn load() -> Result<Puppet, Vec<String>> {
    let mut puppet = Puppet {
        generation: 1,
        ..Puppet::default()
    };
    for arg in std::env::args().skip(1) {
        let (key, value) = arg.split_once('=').unwrap_or((&arg, ""));
        match key {
            "generation" => puppet.generation = value.parse().unwrap_or(0),
            "fail" => return Err(vec![value.to_owned(), "second mistake".to_owned()]),
            "slow" => std::thread::sleep(Duration::from_millis(value.parse().unwrap_or(0))),
            "die" => std::process::abort(),
            "thread" => drop(std::thread::spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                }
            })),
            "changed-when" => puppet.changed = Some(value.into()),
            "worker-error" => puppet.worker_error = Some(value.to_owned()),
            "filter" => puppet.filter = Some(value.to_owned()),
            "may-open" => puppet.may_open = true,
            "dies-at-birth" => puppet.dies_at_birth = true,
            // Tells this process from others.
            "mark" => {}
            _ => return Err(vec![format!("unknown argument {key}")]),
        }
    }
    Ok(puppet)
}

fn main() -> ExitCode {
    engine::worker::run(load)
}
