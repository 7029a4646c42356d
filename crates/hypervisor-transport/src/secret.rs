//! Passwords and keys: from a file or the environment, never in a log.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hypervisor::ConnectorError;
use serde::Deserialize;

/// Longest secret.
pub const SECRET_MAX_BYTES: u64 = 4096;

/// Where a secret comes from: `{ file = "/path" }` or `{ env = "NAME" }`. Read anew at each
/// connection, so that a changed password counts without a restart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretSource {
    /// The file's content without the line's end. The file must not be readable by all.
    File(PathBuf),
    /// The value of a variable of our environment.
    Env(String),
}

/// A secret. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl SecretSource {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConnectorError::Config`], naming file or variable.
    pub fn read(&self) -> Result<Secret, ConnectorError> {
        let secret = match self {
            Self::File(path) => read_file(path)?,
            Self::Env(name) => std::env::var(name).map_err(|error| {
                ConnectorError::Config(format!("the environment's variable {name}: {error}"))
            })?,
        };
        if secret.is_empty() {
            return Err(ConnectorError::Config(format!(
                "{self}: the secret is empty"
            )));
        }
        Ok(Secret(secret))
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "the environment's variable {name}"),
        }
    }
}

impl Secret {
    /// Takes it as it is.
    #[must_use]
    pub fn new(secret: &str) -> Self {
        Self(secret.to_owned())
    }

    /// The secret itself, to be shown to its hypervisor alone.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

fn read_file(path: &Path) -> Result<String, ConnectorError> {
    let refused = |why: String| ConnectorError::Config(format!("{}: {why}", path.display()));
    let failed = |error: std::io::Error| refused(error.to_string());
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & 0o004 != 0 {
        let why = "a file with a secret must not be readable by everybody (chmod o-r)";
        return Err(refused(why.to_owned()));
    }
    let mut text = String::new();
    let mut capped = file.take(SECRET_MAX_BYTES + 1);
    capped.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > SECRET_MAX_BYTES {
        return Err(refused(format!(
            "a secret has at most {SECRET_MAX_BYTES} bytes"
        )));
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(mode: u32, text: &str) -> (tempfile::TempDir, SecretSource) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("password");
        std::fs::write(&path, text).expect("write");
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, permissions).expect("chmod");
        (dir, SecretSource::File(path))
    }

    #[test]
    fn a_file_without_its_line_end() {
        let (_dir, source) = file(0o640, " two words \n");
        assert_eq!(source.read().expect("read").reveal(), " two words ");
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused_with_its_place() {
        let cases = [
            (0o644, "secret", "readable by everybody"),
            (0o600, "", "is empty"),
            (0o600, &*"x".repeat(5000), "at most 4096 bytes"),
        ];
        for (mode, text, why) in cases {
            let (_dir, source) = file(mode, text);
            let error = source.read().expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains("password"), "{error}");
        }
        let missing = SecretSource::Env("LAZARET_NO_SUCH_VARIABLE".to_owned());
        let error = missing.read().expect_err("refused").to_string();
        assert!(error.contains("LAZARET_NO_SUCH_VARIABLE"), "{error}");
    }

    #[test]
    fn debug_hides_it() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}
