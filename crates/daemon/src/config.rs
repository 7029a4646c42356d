//! Configuration files: TOML into a type, with errors that say where.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::log::escape;

/// A larger file is refused before it is parsed.
pub const CONFIG_MAX_BYTES: u64 = 1 << 20;

/// A configuration that cannot be used. Nothing of it is in force.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Larger than [`CONFIG_MAX_BYTES`].
    #[error("{}: a configuration has at most {CONFIG_MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not text.
    #[error("{}: not UTF-8 at byte {byte}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that is not text.
        byte: usize,
    },
    /// Not TOML, an unknown key, or a value that does not fit.
    #[error(transparent)]
    Invalid(Box<Invalid>),
}

/// What is wrong, and where.
#[derive(Debug)]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1; 0 where it is not known.
    pub line: usize,
    /// Column in characters, from 1; 0 where it is not known.
    pub column: usize,
    /// The key with its tables, such as `policy.open_budget_ms`. Empty: the file as a whole.
    pub key: String,
    /// The line itself, cut to a sensible length.
    pub source_line: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", escape(self.key.as_bytes()))?;
        }
        write!(f, ": {}", self.message)?;
        if self.line > 0 {
            let number = self.line.to_string();
            let line = escape(self.source_line.as_bytes());
            write!(f, "\n{number} | {line}")?;
            let indent = number.len() + 2 + self.column;
            write!(f, "\n{:>indent$}^", "")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Reads and checks a configuration file. `T` refuses unknown keys with
/// `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// Names the file, and where it is known line, column and key.
pub fn load<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, ConfigError> {
    let path = path.as_ref();
    let text = read(path)?;
    parse(&text, path)
}

/// Checks the text of a configuration; `path` is for the error alone.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(text: &str, path: impl AsRef<Path>) -> Result<T, ConfigError> {
    let path = path.as_ref();
    let refused = |key: String, error: &toml::de::Error| {
        ConfigError::Invalid(Box::new(locate(path, text, key, error)))
    };
    let deserializer =
        toml::Deserializer::parse(text).map_err(|error| refused(String::new(), &error))?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let key = match error.path().to_string() {
            whole if whole == "." => String::new(),
            key => key,
        };
        refused(key, error.inner())
    })
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(CONFIG_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > CONFIG_MAX_BYTES {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| ConfigError::NotText {
        path: path.to_owned(),
        byte: error.utf8_error().valid_up_to(),
    })
}

/// Longest source line shown in an error, in characters.
const SHOWN_MAX_CHARS: usize = 160;

fn locate(path: &Path, text: &str, key: String, error: &toml::de::Error) -> Invalid {
    let mut invalid = Invalid {
        path: path.to_owned(),
        line: 0,
        column: 0,
        key,
        source_line: String::new(),
        message: escape(error.message().trim().as_bytes()).to_string(),
    };
    let start = error.span().map(|span| span.start);
    let Some((start, before)) = start.and_then(|at| Some((at, text.get(..at)?))) else {
        return invalid;
    };
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    invalid.line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    invalid.column = text[line_start..start].chars().count() + 1;
    let line = text[line_start..].lines().next().unwrap_or_default();
    invalid.source_line = line.chars().take(SHOWN_MAX_CHARS).collect();
    invalid
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        #[serde(default)]
        policy: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        budget_ms: u32,
        paths: Vec<String>,
    }

    fn error_of(text: &str) -> String {
        parse::<Outer>(text, "/etc/lazaret/x.toml")
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn good_text() {
        let outer: Outer = parse("name = 'a'\n[policy]\nbudget_ms = 5\n", "x").expect("good");
        assert_eq!(outer.policy.budget_ms, 5);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place() {
        let text = error_of("name = 'a'\n[policy]\nbudget_sm = 5\n");
        let head = "/etc/lazaret/x.toml:3:1: policy.budget_sm: unknown field `budget_sm`, expected";
        assert!(text.starts_with(head), "{text}");
        assert!(text.ends_with("\n3 | budget_sm = 5\n    ^"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let text = error_of("name = 'a'\n[policy]\n  budget_ms = -1\n");
        let head = "/etc/lazaret/x.toml:3:15: policy.budget_ms: invalid value";
        assert!(text.starts_with(head), "{text}");
    }

    #[test]
    fn a_wrong_list_item_is_named_with_its_index() {
        let text = error_of("name = 'a'\n[policy]\npaths = ['/a', 3]\n");
        let head = "/etc/lazaret/x.toml:3:16: policy.paths[1]: invalid type";
        assert!(text.starts_with(head), "{text}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let text = error_of("[policy]\nbudget_ms = 1\n");
        let head = "/etc/lazaret/x.toml:1:1: missing field `name`";
        assert!(text.starts_with(head), "{text}");
    }

    #[test]
    fn broken_toml_has_a_place() {
        let text = error_of("name = 'a'\nfoo = [\n");
        assert!(text.starts_with("/etc/lazaret/x.toml:"), "{text}");
        assert!(!text.starts_with("/etc/lazaret/x.toml: "), "{text}");
    }

    #[test]
    fn hostile_bytes_do_not_reach_the_terminal() {
        let text = error_of("name = 'a'\n\"\\u001b[31mred\" = 1\n");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn files_that_are_no_configuration() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("write");
            load::<Outer>(path).expect_err("refused").to_string()
        };
        assert!(at("binary", b"name = '\xff'").ends_with("not UTF-8 at byte 8"));
        let huge = vec![b'#'; CONFIG_MAX_BYTES as usize + 1];
        assert!(at("huge", &huge).contains("at most 1048576 bytes"));
        let missing = load::<Outer>(dir.path().join("missing")).expect_err("refused");
        assert!(matches!(missing, ConfigError::Read { .. }));
    }
}
