//! The command line of a scan.

use std::path::PathBuf;
use std::time::Duration;

use super::exclude::Glob;

/// Scan files and directories now.
#[derive(Debug, Clone, clap::Args)]
pub struct ScanArgs {
    /// Files and directories.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Print one JSON object a line: each file found, unscanned or in error, then a summary.
    #[arg(long)]
    pub json: bool,
    /// Show a progress bar on standard error.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub progress: ProgressMode,
    /// Go on where a stopped scan of the same paths and options left off.
    #[arg(long)]
    pub resume: bool,
    /// Leave out what matches: `*` within a name, `**` across directories; without a `/` it is
    /// matched against names, with one against whole paths. May be given more than once.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<Glob>,
    /// Leave out larger files, such as 100M (K, M, G, T: powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Do not enter other file systems than each path's own.
    #[arg(long)]
    pub one_file_system: bool,
    /// Ask about content that is on an allowlist, too: so is seen whether new rules find any of it.
    #[arg(long)]
    pub no_allowlist: bool,
    /// There is time, such as 90m or 4h: work in turns with the other guests of this host and of
    /// what it shares with others, so that the scan is done within that time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub within: Option<Duration>,
    /// Report only: carry out no removal orders.
    #[arg(long)]
    pub no_removal: bool,
}

/// When there is a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ProgressMode {
    /// Where standard error is a terminal.
    #[default]
    Auto,
    /// Always; line by line where standard error is no terminal.
    Always,
    /// Never.
    Never,
}

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size such as 4096, 64K or 1G")]
pub struct SizeError(String);

fn parse_size(text: &str) -> Result<u64, SizeError> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        Some(b't' | b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = number.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError(text.to_owned()))
}

/// Longest time that a scan may have.
const WITHIN_MAX_S: u64 = 7 * 24 * 3600;

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time such as 90s, 30m or 4h, of one second to seven days")]
pub struct TimeError(String);

fn parse_time(text: &str) -> Result<Duration, TimeError> {
    let wrong = || TimeError(text.to_owned());
    let unit_s = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        _ => return Err(wrong()),
    };
    let number = text[..text.len() - 1].parse::<u64>().ok();
    let seconds = number.and_then(|number| number.checked_mul(unit_s));
    let seconds = seconds.filter(|seconds| (1..=WITHIN_MAX_S).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("4h"), Ok(Duration::from_secs(4 * 3600)));
        for text in [
            "",
            "m",
            "4",
            "-1s",
            "0s",
            "1.5h",
            "169h",
            "99999999999999999h",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        for text in ["", "K", "-1", "1.5M", "1KB", "20000000T", "1é"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
