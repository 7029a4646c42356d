//! Where configuration and state are.

use std::fmt;
use std::path::{Path, PathBuf};

use appliance::Config;

/// Read where no other is named, if it is there.
const DEFAULT_CONFIG: &str = "/etc/lazaret/lazaret.toml";
const DEFAULT_STATE: &str = "/var/lib/lazaret";

/// A configuration that cannot be used; the text says what and where.
#[derive(Debug)]
pub(crate) struct ConfigFailure(String);

impl fmt::Display for ConfigFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigFailure {}

/// Configuration and state folder of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// `None`: defaults.
    pub(crate) file: Option<PathBuf>,
    pub(crate) config: Config,
    pub(crate) state_dir: PathBuf,
}

impl Place {
    /// Reads and checks the configuration.
    pub(crate) fn find(config: Option<&Path>, state: Option<&Path>) -> Result<Self, ConfigFailure> {
        let default = Path::new(DEFAULT_CONFIG);
        let file = config.or_else(|| default.exists().then_some(default));
        let config = match file {
            Some(file) => load(file)?,
            None => Config::default(),
        };
        let configured = config.state_dir.as_deref();
        let state_dir = state.or(configured).unwrap_or(Path::new(DEFAULT_STATE));
        Ok(Self {
            file: file.map(Path::to_owned),
            state_dir: state_dir.to_owned(),
            config,
        })
    }

    /// Reads the configuration again, for a reload.
    pub(crate) fn read_again(&self) -> Result<Config, ConfigFailure> {
        match &self.file {
            Some(file) => load(file),
            None => Ok(Config::default()),
        }
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        appliance::admin_socket(&self.state_dir, self.config.runtime_dir.as_deref())
    }

    pub(crate) fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }
}

fn load(file: &Path) -> Result<Config, ConfigFailure> {
    let config: Config = daemon::config::load(file).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        ConfigFailure(format!("{error}{}", cause.unwrap_or_default()))
    })?;
    config
        .validate()
        .map_err(|conflict| ConfigFailure(format!("{}: {conflict}", file.display())))?;
    Ok(config)
}

/// `lazaret check-config`: the file has been read by now.
pub(crate) fn check(place: &Place) -> anyhow::Result<()> {
    let what = match &place.file {
        Some(file) => file.display().to_string(),
        None => format!("{DEFAULT_CONFIG} does not exist; the defaults"),
    };
    println!("{what}: good");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_line_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lazaret.toml");
        std::fs::write(&file, "[limits]\nsesions_max = 1\n").unwrap();
        let error = Place::find(Some(&file), None).unwrap_err().to_string();
        let place = format!("{}:2:1: limits.sesions_max", file.display());
        assert!(error.starts_with(&place), "{error}");
        std::fs::write(&file, "[limits]\nmemory_bytes_max = 1\n").unwrap();
        let error = Place::find(Some(&file), None).unwrap_err().to_string();
        assert!(error.contains("lazaret.toml: limits."), "{error}");
        let missing = Place::find(Some(&dir.path().join("no.toml")), None);
        assert!(missing.unwrap_err().to_string().contains("no.toml"));
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lazaret.toml");
        std::fs::write(&file, "state_dir = '/a'\nruntime_dir = '/run/l'\n").unwrap();
        let place = Place::find(Some(&file), None).unwrap();
        assert_eq!(place.state_dir, Path::new("/a"));
        assert_eq!(place.admin_socket(), Path::new("/run/l/admin.sock"));
        let place = Place::find(Some(&file), Some(Path::new("/b"))).unwrap();
        assert_eq!(place.state_dir, Path::new("/b"));
    }
}
