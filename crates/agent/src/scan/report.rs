//! What a scan prints: findings and trouble on standard output, the bar on standard error.

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use daemon::log::escape;
use model::{Coverage, Detection, Generation, Outcome};
use serde::Serialize;

use super::halt::Halt;
use super::progress::size;
use super::removal::Removal;
use super::totals::Totals;

/// One file's result, or what kept it from having one.
#[derive(Debug)]
pub(crate) struct Finding<'a> {
    pub(crate) path: &'a Path,
    pub(crate) outcome: &'a Outcome,
    pub(crate) released: bool,
    pub(crate) digest: Option<model::Digest>,
    pub(crate) coverage: Option<&'a Coverage>,
    pub(crate) removal: Option<&'a Removal>,
}

/// The end of it all.
#[derive(Debug, Clone)]
pub(crate) struct Summary {
    pub(crate) totals: Totals,
    pub(crate) generation: Generation,
    pub(crate) seconds: f64,
    /// Why the scan did not come to its end.
    pub(crate) halted: Option<String>,
}

/// Prints lines; safe to share between threads.
pub(crate) struct Report<'a> {
    json: bool,
    halt: &'a Halt,
    screen: Mutex<Screen>,
}

struct Screen {
    out: Box<dyn Write + Send>,
    /// The bar can be drawn over: standard error is a terminal.
    terminal: bool,
    bar_drawn: bool,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    path: JsonPath<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detections: Vec<JsonDetection<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    detections_omitted: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<JsonCoverage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removal: Option<JsonRemoval<'a>>,
}

/// A path that is not UTF-8 cannot be a JSON string: it goes by another key, with every byte that
/// is not printable ASCII as `\xNN` and backslashes doubled.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum JsonPath<'a> {
    Path(&'a str),
    PathEscaped(String),
}

#[derive(Serialize)]
struct JsonDetection<'a> {
    name: &'a str,
    engine: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inside: Vec<JsonPath<'a>>,
}

/// What engines saw, where that is not the whole.
#[derive(Serialize)]
struct JsonCoverage {
    bytes_judged: u64,
    bytes_total: u64,
    /// By which the other bytes were reported on.
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
}

#[derive(Serialize)]
struct JsonRemoval<'a> {
    action: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<String>,
}

#[derive(Serialize)]
struct JsonSummary<'a> {
    r#type: &'static str,
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    halted: Option<&'a str>,
    generation: String,
    seconds: f64,
    #[serde(flatten)]
    totals: Totals,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl<'a> Report<'a> {
    /// Prints to `out`. Where that fails, nobody reads it any more, and the scan is halted.
    pub(crate) fn new(out: Box<dyn Write + Send>, json: bool, halt: &'a Halt) -> Self {
        Self {
            json,
            halt,
            screen: Mutex::new(Screen {
                out,
                terminal: io::stderr().is_terminal(),
                bar_drawn: false,
            }),
        }
    }

    /// A file that is not simply clean.
    pub(crate) fn finding(&self, finding: &Finding<'_>) {
        if matches!(finding.outcome, Outcome::Clean) {
            return;
        }
        if self.json {
            self.json_line(&json_finding(finding));
        } else {
            self.line(&text_finding(finding));
        }
    }

    /// Something other than a file that cannot be looked at.
    pub(crate) fn trouble(&self, path: &Path, message: &str) {
        let outcome = Outcome::Error {
            message: message.to_owned(),
        };
        self.finding(&Finding {
            path,
            outcome: &outcome,
            released: false,
            digest: None,
            coverage: None,
            removal: None,
        });
    }

    /// The last line, or the last lines.
    pub(crate) fn summary(&self, summary: &Summary) {
        if self.json {
            self.json_line(&JsonSummary {
                r#type: "summary",
                complete: summary.halted.is_none(),
                halted: summary.halted.as_deref(),
                generation: summary.generation.to_string(),
                seconds: summary.seconds,
                totals: summary.totals,
            });
        } else {
            self.line(&text_summary(summary));
        }
    }

    /// Draws the bar over the last one; on its own line where that cannot be done.
    pub(crate) fn bar(&self, line: &str) {
        let mut screen = self.lock();
        let end = if screen.terminal { "" } else { "\n" };
        screen.erase_bar();
        // Nothing depends on the bar.
        let _unseen = write!(io::stderr(), "{line}{end}");
        screen.bar_drawn = screen.terminal;
    }

    /// Takes the bar away.
    pub(crate) fn end_bar(&self) {
        self.lock().erase_bar();
    }

    /// A remark for people, beside the results.
    pub(crate) fn remark(&self, text: &str) {
        let mut screen = self.lock();
        screen.erase_bar();
        let _unseen = writeln!(io::stderr(), "{text}");
    }

    fn json_line(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.line(&line),
            Err(error) => self.halt.halt(format!("cannot print a result: {error}")),
        }
    }

    fn line(&self, line: &str) {
        let mut screen = self.lock();
        screen.erase_bar();
        let written = writeln!(screen.out, "{line}").and_then(|()| screen.out.flush());
        if let Err(error) = written {
            self.halt.halt(format!("cannot print results: {error}"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Screen {
    fn erase_bar(&mut self) {
        if std::mem::take(&mut self.bar_drawn) {
            let _unseen = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The stable name of a result.
fn kind(finding: &Finding<'_>) -> &'static str {
    match finding.outcome {
        Outcome::Clean => "clean",
        Outcome::Malicious { .. } if finding.released => "released",
        Outcome::Malicious { .. } => "found",
        Outcome::Unscanned { .. } => "unscanned",
        Outcome::Error { .. } => "error",
    }
}

fn text_finding(finding: &Finding<'_>) -> String {
    let path = escape(finding.path.as_os_str().as_bytes());
    let mut text = match finding.outcome {
        Outcome::Clean => format!("{path}: OK"),
        Outcome::Malicious { detections, .. } => {
            let names: Vec<_> = detections.iter().map(text_detection).collect();
            let word = if finding.released {
                "RELEASED"
            } else {
                "FOUND"
            };
            format!("{path}: {} {word}", names.join(", "))
        }
        Outcome::Unscanned { reason, detail } => {
            let detail = match detail.as_str() {
                "" => String::new(),
                detail => format!(" ({})", escape(detail.as_bytes())),
            };
            format!("{path}: {}{detail} UNSCANNED", reason.name())
        }
        Outcome::Error { message } => format!("{path}: {} ERROR", escape(message.as_bytes())),
    };
    if let Some(removal) = finding.removal {
        let status = status_name(removal);
        text.push_str(&format!(" - {} {status}", removal.action));
        if let Some(item) = removal.item {
            text.push_str(&format!(", item {item}"));
        }
        if !removal.detail.is_empty() {
            text.push_str(&format!(" ({})", escape(removal.detail.as_bytes())));
        }
    }
    text
}

fn text_detection(detection: &Detection) -> String {
    let mut text = escape(detection.name.as_bytes()).to_string();
    if !detection.path_inside.is_empty() {
        let inside: Vec<_> = detection
            .path_inside
            .iter()
            .map(|name| escape(name).to_string())
            .collect();
        text.push_str(&format!(" in {}", inside.join(" > ")));
    }
    text
}

fn text_summary(summary: &Summary) -> String {
    let totals = &summary.totals;
    let mut text = String::from("----------- SCAN SUMMARY -----------");
    let mut row = |name: &str, value: String| text.push_str(&format!("\n{name}: {value}"));
    row("Files", totals.files.to_string());
    row("Data judged", size(totals.bytes));
    row("Infected files", totals.found.to_string());
    for (name, value) in [
        ("Removed", totals.removed),
        ("Removals failed", totals.removals_failed),
        ("Released", totals.released),
        ("Unscanned", totals.unscanned),
        ("Errors", totals.errors),
        ("Skipped", totals.skipped),
        ("Allowlisted", totals.allowlisted),
        ("Judged by report", totals.reported),
    ] {
        if value > 0 {
            row(name, value.to_string());
        }
    }
    row("Rules", summary.generation.to_string());
    row("Time", format!("{:.1} s", summary.seconds));
    if let Some(why) = &summary.halted {
        row("Incomplete", format!("{why}; --resume goes on from here"));
    }
    text
}

fn json_finding<'a>(finding: &Finding<'a>) -> JsonFinding<'a> {
    let mut json = JsonFinding {
        r#type: kind(finding),
        path: json_path(finding.path.as_os_str().as_bytes()),
        blake3: finding.digest.map(|digest| digest.to_string()),
        detections: Vec::new(),
        detections_omitted: 0,
        reason: None,
        detail: "",
        coverage: finding.coverage.and_then(json_coverage),
        removal: finding.removal.map(|removal| JsonRemoval {
            action: removal.action,
            status: status_name(removal),
            detail: &removal.detail,
            item: removal.item.map(|id| id.to_string()),
        }),
    };
    match finding.outcome {
        Outcome::Clean => {}
        Outcome::Malicious {
            detections,
            omitted,
        } => {
            json.detections = detections.iter().map(json_detection).collect();
            json.detections_omitted = *omitted;
        }
        Outcome::Unscanned { reason, detail } => {
            json.reason = Some(reason.name());
            json.detail = detail;
        }
        Outcome::Error { message } => json.detail = message,
    }
    json
}

fn json_coverage(coverage: &Coverage) -> Option<JsonCoverage> {
    let is_part = coverage.bytes_judged < coverage.bytes_total;
    is_part.then(|| JsonCoverage {
        bytes_judged: coverage.bytes_judged,
        bytes_total: coverage.bytes_total,
        filter: coverage.filter.map(|id| id.to_string()),
    })
}

fn json_detection(detection: &Detection) -> JsonDetection<'_> {
    let inside = detection.path_inside.iter();
    JsonDetection {
        name: &detection.name,
        engine: &detection.engine,
        inside: inside.map(|name| json_path(name)).collect(),
    }
}

fn json_path(bytes: &[u8]) -> JsonPath<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => JsonPath::Path(text),
        Err(_) => JsonPath::PathEscaped(bytes.escape_ascii().to_string()),
    }
}

fn status_name(removal: &Removal) -> &'static str {
    use proto::v1::OrderStatus as S;
    match removal.status {
        S::Done => "done",
        S::RefusedChanged => "refused_changed",
        S::RefusedMissing => "refused_missing",
        S::RefusedConflict => "refused_conflict",
        S::Failed | S::Unspecified => "failed",
    }
}
