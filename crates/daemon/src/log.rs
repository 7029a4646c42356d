//! Logs: one line for each event on standard error, safe to show on a terminal, rate-limited where
//! a guest can trigger them.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogError;
    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(escape(other.as_bytes()).to_string())),
        }
    }
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Neither `text` nor `json`.
    #[error("log format must be \"text\" or \"json\", not \"{0}\"")]
    Format(String),
    /// Not a filter such as `info,link=debug`.
    #[error("log filter \"{filter}\" is not valid")]
    Filter {
        /// As given.
        filter: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging was set up twice")]
    Twice,
}

/// Sends every event that passes `filter` (such as `info,link=debug`) to standard error.
///
/// # Errors
/// The filter is not one, or logging was set up before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let filter: Targets = filter.parse().map_err(|source| LogError::Filter {
        filter: escape(filter.as_bytes()).to_string(),
        source,
    })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(OneLine);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| LogError::Twice)
}

/// Writes each event as exactly one line without control characters, whatever its fields hold:
/// the last place a file name with a newline or an ANSI sequence could forge a line.
#[derive(Debug, Clone, Copy)]
struct OneLine;

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        // The formatter hands over one event at a time, ending in one newline of its own.
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        let text = String::from_utf8_lossy(body);
        let mut line = String::with_capacity(text.len() + 1);
        text.chars().for_each(|char| push_shown(&mut line, char));
        line.push('\n');
        io::stderr().lock().write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Longest text that [`escape`] shows, in bytes of its input; as long as a path may be.
pub const ESCAPED_MAX_BYTES: usize = 4096;

/// Shows bytes from a guest on one line: control characters, invalid UTF-8, backslashes and the
/// characters that reorder text are written as escapes. At most [`ESCAPED_MAX_BYTES`] are shown.
#[must_use]
pub fn escape(bytes: &[u8]) -> impl fmt::Display + '_ {
    Escaped(bytes)
}

struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.get(..ESCAPED_MAX_BYTES).unwrap_or(self.0);
        let mut line = String::with_capacity(shown.len());
        for chunk in shown.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '\\' => line.push_str("\\\\"),
                    char => push_shown(&mut line, char),
                }
            }
            chunk
                .invalid()
                .iter()
                .try_for_each(|byte| write!(line, "\\x{byte:02x}"))?;
        }
        f.write_str(&line)?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, "…({more} bytes more)"),
        }
    }
}

fn push_shown(line: &mut String, char: char) {
    if char.is_control() || reorders(char) {
        line.extend(char.escape_default());
    } else {
        line.push(char);
    }
}

/// Line and paragraph separators and bidirectional controls: they make a line look like another.
fn reorders(char: char) -> bool {
    matches!(
        char,
        '\u{061c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
    )
}

/// Lets a log line through at most so many times a minute, with a burst of as many.
///
/// ```
/// use std::time::Instant;
/// static REFUSED: daemon::log::RateLimit = daemon::log::RateLimit::new(60);
/// if let Some(suppressed) = REFUSED.allow(Instant::now()) {
///     tracing::warn!(suppressed, "a guest sent nonsense");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimit {
    per_minute: u32,
    state: Mutex<Option<Tokens>>,
}

#[derive(Debug)]
struct Tokens {
    /// Time at which the bucket was full, moved forward by each line that passed.
    full_at: Instant,
    suppressed: u64,
}

impl RateLimit {
    /// At most `per_minute` lines a minute; 0 lets nothing through.
    #[must_use]
    pub const fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            state: Mutex::new(None),
        }
    }

    /// `Some(n)`: write the line; `n` were held back since the last. `None`: hold it back.
    pub fn allow(&self, now: Instant) -> Option<u64> {
        const BURST: Duration = Duration::from_secs(60);
        let step = BURST.checked_div(self.per_minute)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = state.get_or_insert(Tokens {
            full_at: now,
            suppressed: 0,
        });
        let full_at = tokens.full_at.max(now) + step;
        if full_at.duration_since(now) > BURST {
            tokens.suppressed += 1;
            return None;
        }
        tokens.full_at = full_at;
        Some(std::mem::take(&mut tokens.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &str) {
        assert_eq!(escape(bytes).to_string(), expected);
    }

    #[test]
    fn plain_text_stays() {
        check(b"/srv/files/report 1.odt", "/srv/files/report 1.odt");
        check("größe".as_bytes(), "größe");
    }

    #[test]
    fn hostile_bytes_are_shown_not_obeyed() {
        check(b"a\nb\r\0\t", "a\\nb\\r\\u{0}\\t");
        check(b"\x1b[2Jgone", "\\u{1b}[2Jgone");
        check(b"\xff\xfe", "\\xff\\xfe");
        check("\u{9b}31m".as_bytes(), "\\u{9b}31m");
        check("a\u{202e}b\u{2028}".as_bytes(), "a\\u{202e}b\\u{2028}");
        check(b"\\n", "\\\\n");
    }

    #[test]
    fn long_text_is_cut() {
        let shown = escape(&[b'a'; ESCAPED_MAX_BYTES + 5]).to_string();
        assert!(shown.ends_with("a…(5 bytes more)"));
    }

    #[test]
    fn limits_and_counts() {
        let limit = RateLimit::new(2);
        let start = Instant::now();
        assert_eq!(limit.allow(start), Some(0));
        assert_eq!(limit.allow(start), Some(0));
        assert_eq!(limit.allow(start), None);
        assert_eq!(limit.allow(start + Duration::from_secs(29)), None);
        assert_eq!(limit.allow(start + Duration::from_secs(31)), Some(2));
        assert_eq!(limit.allow(start + Duration::from_secs(3600)), Some(0));
        assert_eq!(RateLimit::new(0).allow(start), None);
    }

    #[test]
    fn formats() {
        assert_eq!("json".parse::<LogFormat>().ok(), Some(LogFormat::Json));
        let refused = "xml\n".parse::<LogFormat>().expect_err("refused");
        assert_eq!(
            refused.to_string(),
            "log format must be \"text\" or \"json\", not \"xml\\n\""
        );
    }
}
