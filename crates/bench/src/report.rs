//! `target/bench/NAME.json`: figures and ratios of one run, with the machine and the commit.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

/// What a bench found.
#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    figures: Map<String, Value>,
    ratios: Map<String, Value>,
    notes: Map<String, Value>,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            figures: Map::new(),
            ratios: Map::new(),
            notes: Map::new(),
        }
    }

    /// Adds a figure: a number, or an object of numbers. The key ends in its unit.
    pub(crate) fn figure(&mut self, key: &str, value: impl Into<Value>) {
        self.figures.insert(key.to_owned(), rounded(value.into()));
    }

    /// Adds a ratio.
    pub(crate) fn ratio(&mut self, key: &str, value: f64) {
        self.ratios.insert(key.to_owned(), rounded(value.into()));
    }

    /// Adds how something was measured.
    pub(crate) fn note(&mut self, key: &str, value: impl Into<Value>) {
        self.notes.insert(key.to_owned(), value.into());
    }

    /// Writes report and plot, where there is one; with `publish`, a copy of both under
    /// `docs/bench/`.
    pub(crate) fn write(&self, plot: Option<&str>, publish: bool) -> Result<()> {
        let report = json!({
            "name": self.name,
            "commit": commit()?,
            "machine": machine()?,
            "how": self.notes,
            "figures": self.figures,
            "ratios": self.ratios,
        });
        let text = serde_json::to_string_pretty(&report)? + "\n";
        let root = root()?;
        let folders = ["target/bench"]
            .into_iter()
            .chain(publish.then_some("docs/bench"));
        for folder in folders {
            let folder = root.join(folder);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(format!("{}.json", self.name)), &text)?;
            if let Some(plot) = plot {
                std::fs::write(folder.join(format!("{}.svg", self.name)), plot)?;
            }
        }
        Ok(())
    }
}

/// Four significant digits: more are noise.
fn rounded(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let exact = number.as_f64().unwrap_or_default();
            let text = format!("{exact:.3e}");
            json!(text.parse().unwrap_or(exact))
        }
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (key, rounded(value)))
            .collect(),
        other => other,
    }
}

/// The checkout, which `./x` runs us in.
fn root() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    ensure!(
        here.join("x").is_file(),
        "run through ./x: {} is not the project's root",
        here.display()
    );
    Ok(here)
}

fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git").args(args).output().context("git")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(commit + if changed { "+changes" } else { "" })
}

fn machine() -> Result<Value> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let memory = meminfo.lines().next().unwrap_or_default();
    Ok(json!({
        "cpu": field("model name"),
        "cpus": std::thread::available_parallelism()?.get(),
        "memory": memory.split_once(':').map(|(_, size)| size.trim()),
        "kernel": read_trimmed(Path::new("/proc/sys/kernel/osrelease")),
        "system": system.map(|name| name.trim_matches('"')),
    }))
}

fn read_trimmed(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_four_digits() {
        let value = json!({"p50": 1_234.567_8, "n": 2000, "tiny": 0.000_123_456});
        let expected = json!({"p50": 1235.0, "n": 2000, "tiny": 0.000_123_5});
        assert_eq!(rounded(value), expected);
    }
}
