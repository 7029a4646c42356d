//! The life of a worker process: confine, say hello, one job at a time, end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::{DETECTIONS_MAX, FilterId};
use prost::Message;
use proto::{ASK_RANGES_MAX, ENGINE_PACKET_MAX_BYTES, v1};
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

use super::{Input, PartialInput, Template, Worker, ask_for_whole};
use crate::packet::{
    self, HELLO_JOB_ID, PATH_COMPONENT_MAX_BYTES, PATH_COMPONENTS_MAX, TEXT_MAX_BYTES,
};
use crate::sandbox::{self, Missing, Sandbox};
use crate::sys;

/// Exit codes; the host shows them.
const EXIT_DONE: i32 = 0;
const EXIT_NO_WORKER: i32 = 3;
const EXIT_HOST_NONSENSE: i32 = 4;
const EXIT_PANIC: i32 = 101;

/// Bytes of all detections of a report: with everything else it fits into a packet.
const DETECTIONS_MAX_BYTES: usize = ENGINE_PACKET_MAX_BYTES - 16 * 1024;
/// How often processor time is looked at.
const WEAR_LOOK: Duration = Duration::from_secs(60);
/// Key and length of one of them.
const DETECTION_OVERHEAD_BYTES: usize = 8;

/// What the last panic said, kept by the hook.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Everything a forked worker does. Nothing of the template's code runs after it.
pub(super) fn serve<T: Template>(
    template: &T,
    setup: &v1::Setup,
    filter: Option<FilterId>,
    socket: OwnedFd,
    null: BorrowedFd<'_>,
    parent: Pid,
) -> ! {
    let life = AssertUnwindSafe(|| {
        std::panic::set_hook(Box::new(|panic| {
            let mut last = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
            *last = panic.to_string().replace('\n', ": ");
        }));
        let mut desk = Desk::new(socket);
        match confine(template, setup, desk.socket.as_fd(), null, parent) {
            Ok((worker, missing)) => desk.work(worker, filter, missing),
            Err(error) => {
                let hello = v1::ScanReport {
                    job_id: HELLO_JOB_ID,
                    error,
                    ..Default::default()
                };
                desk.send(&hello);
                EXIT_NO_WORKER
            }
        }
    });
    sys::exit(catch_unwind(life).unwrap_or(EXIT_PANIC))
}

/// Builds the sandbox from the inside. Returns the scanner and what is missing (best effort only).
fn confine<T: Template>(
    template: &T,
    setup: &v1::Setup,
    socket: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
    parent: Pid,
) -> Result<(T::Worker, Vec<String>), String> {
    let text = |missing: Missing| missing.to_string();
    let mut warnings = Vec::new();
    let mut optional = |result: Result<(), Missing>| match result {
        Err(missing) if setup.best_effort => {
            warnings.push(missing.to_string());
            Ok(())
        }
        result => result.map_err(text),
    };
    sandbox::die_with(parent).map_err(text)?;
    // The control socket and the template's log are not for workers.
    sys::replace_standard_streams(null).map_err(|e| format!("standard streams: {e}"))?;
    sys::close_all_but(socket).map_err(|e| format!("close_range: {e}"))?;
    let rules: Sandbox = template.sandbox();
    sandbox::limit(&rules, setup.memory_max_bytes).map_err(text)?;
    sandbox::drop_privileges().map_err(text)?;
    sandbox::die_with(parent).map_err(text)?;
    optional(sandbox::landlock(&rules))?;
    let worker = template.worker()?;
    // The first look at a clock searches for the vDSO with system calls that the filter forbids.
    cpu_seconds();
    optional(sandbox::seccomp(&rules))?;
    Ok((worker, warnings))
}

/// A worker's end of its job socket.
struct Desk {
    socket: OwnedFd,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// When it was looked how much processor time is used.
    looked_at: Instant,
}

impl Desk {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            looked_at: Instant::now(),
            incoming: vec![0; ENGINE_PACKET_MAX_BYTES],
            outgoing: Vec::new(),
        }
    }

    /// The limit of processor time would soon end this process in the middle of a job. To ask the
    /// kernel for it takes a call, and no more of it passes than time.
    fn is_worn_out(&mut self) -> bool {
        if self.looked_at.elapsed() < WEAR_LOOK {
            return false;
        }
        self.looked_at = Instant::now();
        cpu_seconds() >= sandbox::CPU_MAX_S / 2
    }

    /// False where the host is gone.
    fn send(&mut self, report: &v1::ScanReport) -> bool {
        packet::send(self.socket.as_fd(), report, None, &mut self.outgoing).is_ok()
    }

    /// Jobs until the host closes the socket; the exit code.
    fn work(
        &mut self,
        mut worker: impl Worker,
        filter: Option<FilterId>,
        missing: Vec<String>,
    ) -> i32 {
        let mut hello = v1::ScanReport {
            job_id: HELLO_JOB_ID,
            ..Default::default()
        };
        if !missing.is_empty() {
            hello.incomplete = Some(v1::Unscanned {
                detail: missing.join("; "),
                ..Default::default()
            });
        }
        if !self.send(&hello) {
            return EXIT_DONE;
        }
        loop {
            let Ok(Some(received)) = packet::recv(&self.socket, &mut self.incoming) else {
                return EXIT_DONE;
            };
            let bytes = self.incoming.get(..received.len).unwrap_or_default();
            let Ok(job) = v1::ScanJob::decode(bytes) else {
                return EXIT_HOST_NONSENSE;
            };
            let mut report = judge(&mut worker, filter, &job, received.fd);
            report.job_id = job.job_id;
            report.last |= self.is_worn_out();
            if !self.send(&report) || report.last {
                return EXIT_DONE;
            }
        }
    }
}

/// One job. A panic costs this process its life and the file the rest of its verdict: what was
/// found before still counts, or a file could hide behind a crash of its own making.
fn judge(
    worker: &mut impl Worker,
    filter: Option<FilterId>,
    job: &v1::ScanJob,
    fd: Option<OwnedFd>,
) -> v1::ScanReport {
    let mut report = v1::ScanReport::default();
    let scan = AssertUnwindSafe(|| match &job.partial {
        Some(partial) if filter.is_none_or(|id| partial.filter != id.0) => {
            let why = "found by another filter than that of these rules";
            report.partial = Some(ask_for_whole(why));
        }
        Some(partial) => match PartialInput::new(job, partial, fd) {
            Ok(input) => worker.scan_partial(job, input, &mut report),
            Err(error) => report.error = error,
        },
        None => match Input::new(job, fd) {
            Ok(input) => worker.scan(job, &input, &mut report),
            Err(error) => report.error = error,
        },
    });
    if catch_unwind(scan).is_err() {
        let said = PANIC.lock().unwrap_or_else(PoisonError::into_inner);
        report.incomplete = Some(v1::Unscanned {
            reason: v1::UnscannedReason::EngineCrashed.into(),
            detail: said.clone(),
        });
        report.partial = None;
        report.last = true;
    }
    capped(report)
}

/// The report within a packet. Detections beyond the limits are counted instead: a report that
/// does not fit would be lost, and a file could hide what was found behind names of its choice.
fn capped(mut report: v1::ScanReport) -> v1::ScanReport {
    let mut room = DETECTIONS_MAX_BYTES;
    let found = std::mem::take(&mut report.detections);
    let total = found.len();
    for mut detection in found.into_iter().take(DETECTIONS_MAX) {
        detection.path_inside.truncate(PATH_COMPONENTS_MAX);
        for component in &mut detection.path_inside {
            component.truncate(PATH_COMPONENT_MAX_BYTES);
        }
        truncate(&mut detection.name);
        let Some(rest) = room.checked_sub(detection.encoded_len() + DETECTION_OVERHEAD_BYTES)
        else {
            break;
        };
        room = rest;
        report.detections.push(detection);
    }
    let omitted = u32::try_from(total - report.detections.len()).unwrap_or(u32::MAX);
    report.omitted = report.omitted.saturating_add(omitted);
    truncate(&mut report.error);
    if let Some(incomplete) = &mut report.incomplete {
        truncate(&mut incomplete.detail);
    }
    if let Some(step) = &mut report.partial {
        truncate(&mut step.whole);
        if step.ask.len() > ASK_RANGES_MAX {
            step.whole = format!("{} ranges could change the verdict", step.ask.len());
            step.ask.clear();
        }
    }
    report
}

fn truncate(text: &mut String) {
    text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
}

/// CPU time that this process has used.
fn cpu_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::ProcessCPUTime).tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_report_fits_into_a_packet_and_keeps_a_detection() {
        let detection = v1::Detection {
            name: "n".repeat(100_000),
            engine: String::new(),
            path_inside: vec![vec![b'x'; 100_000]; 100],
        };
        let report = capped(v1::ScanReport {
            job_id: u64::MAX,
            detections: vec![detection; 100],
            omitted: 5,
            error: "é".repeat(100_000),
            incomplete: Some(v1::Unscanned {
                reason: 1,
                detail: "d".repeat(100_000),
            }),
            ..Default::default()
        });
        assert!(report.encoded_len() <= ENGINE_PACKET_MAX_BYTES);
        assert!(!report.detections.is_empty());
        let kept = u32::try_from(report.detections.len()).expect("few");
        assert_eq!(report.omitted, 105 - kept);
    }

    #[test]
    fn ranges_fit_into_a_packet_or_the_whole_is_asked_for() {
        let answer = |ranges: usize| {
            let far = v1::ByteRange {
                offset: u64::MAX,
                length: u64::MAX,
            };
            let step = v1::PartialStep {
                ask: vec![far; ranges],
                ..v1::PartialStep::default()
            };
            capped(v1::ScanReport {
                job_id: u64::MAX,
                partial: Some(step),
                ..Default::default()
            })
        };
        let most = answer(ASK_RANGES_MAX);
        assert!(most.encoded_len() <= ENGINE_PACKET_MAX_BYTES);
        assert_eq!(
            most.partial.map(|step| step.ask.len()),
            Some(ASK_RANGES_MAX)
        );
        let more = answer(ASK_RANGES_MAX + 1).partial.expect("a step");
        assert!(more.ask.is_empty() && !more.whole.is_empty());
    }
}
