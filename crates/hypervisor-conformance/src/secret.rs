//! Files with secrets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

/// Writes a secret to a file that its owner alone may read.
///
/// # Errors
/// It cannot be written.
pub fn write_secret(dir: &Path, name: &str, secret: &str) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, secret)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}
