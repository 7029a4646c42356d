//! One worker: a session with clamd, opened again when it was lost.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::worker::{Input, Worker};
use proto::v1;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::answer::Answer;
use crate::limits_test;
use crate::session::{Session, SessionError};
use crate::{ENGINE, VERSION_TIMEOUT};

/// For jobs that come without a limit; the appliance has its own.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

pub(crate) struct ClamdWorker {
    path: PathBuf,
    session: Option<Session>,
}

impl ClamdWorker {
    pub(crate) fn new(path: PathBuf) -> Result<Self, SessionError> {
        let session = Some(limits_test::open(&path, VERSION_TIMEOUT)?);
        Ok(Self { path, session })
    }

    /// clamd's answer. A session that turns out to be lost (clamd restarted, or tired of waiting
    /// for work) is opened again once, and tested: the clamd that answers may be another one.
    fn ask(&mut self, file: &impl AsFd, limit: Duration) -> Result<String, SessionError> {
        let ends_at = Instant::now() + limit;
        let left = || ends_at.saturating_duration_since(Instant::now());
        if let Some(mut session) = self.session.take() {
            match session.scan(file.as_fd(), limit) {
                Err(SessionError::Lost(_)) => {}
                Ok(answer) => {
                    self.session = Some(session);
                    return Ok(answer);
                }
                Err(error) => return Err(error),
            }
        }
        let mut session = limits_test::open(&self.path, left())?;
        let answer = session.scan(file.as_fd(), left())?;
        self.session = Some(session);
        Ok(answer)
    }
}

impl Worker for ClamdWorker {
    fn scan(&mut self, job: &v1::ScanJob, input: &Input<'_>, report: &mut v1::ScanReport) {
        // clamd has no opinion on nothing.
        if input.size() == 0 {
            return;
        }
        let limit = match job.timeout_ms {
            0 => TIMEOUT_DEFAULT,
            ms => Duration::from_millis(ms.into()),
        };
        let asked = match input.fd() {
            Some(file) => self.ask(&file, limit),
            None => match input.bytes().and_then(memory_file) {
                Ok(file) => self.ask(&file, limit),
                Err(error) => {
                    report.error = format!("content for clamd: {error}");
                    return;
                }
            },
        };
        match asked {
            Ok(text) => judge(&text, report),
            Err(SessionError::Timeout) => {
                incomplete(
                    report,
                    v1::UnscannedReason::EngineTimeout,
                    "no answer in time",
                );
            }
            Err(
                error @ (SessionError::Connect(_) | SessionError::Lost(_) | SessionError::Unfit(_)),
            ) => {
                let detail = format!("clamd: {error}");
                incomplete(report, v1::UnscannedReason::EngineUnavailable, &detail);
            }
            Err(error @ SessionError::Nonsense(_)) => report.error = format!("clamd: {error}"),
        }
    }
}

fn judge(text: &str, report: &mut v1::ScanReport) {
    match Answer::parse(text) {
        Some(Answer::Clean) => {}
        Some(Answer::Found(name)) => report.detections.push(v1::Detection {
            name,
            engine: ENGINE.to_owned(),
            path_inside: Vec::new(),
        }),
        Some(Answer::Incomplete(reason, detail)) => incomplete(report, reason, &detail),
        Some(Answer::Error(error)) => report.error = error,
        None => report.error = format!("clamd: answer not understood: {text:?}"),
    }
}

fn incomplete(report: &mut v1::ScanReport, reason: v1::UnscannedReason, detail: &str) {
    report.incomplete = Some(v1::Unscanned {
        reason: reason.into(),
        detail: detail.to_owned(),
    });
}

/// These bytes as a file, since clamd takes files.
pub(crate) fn memory_file(mut rest: &[u8]) -> Result<OwnedFd, String> {
    let file = memfd_create("lazaret-clamd", MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let mut offset = 0;
    while !rest.is_empty() {
        let count = rustix::io::pwrite(&file, rest, offset).map_err(|e| e.to_string())?;
        rest = rest.get(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(file)
}
