//! Files that are locked for one process.

use std::fs::{File, TryLockError};

/// A file with an exclusive lock (`flock`), which is given back when this is dropped.
#[derive(Debug)]
pub struct LockedFile(File);

impl LockedFile {
    /// Locks it; does not wait.
    ///
    /// # Errors
    /// As [`File::try_lock`].
    pub fn try_lock(file: File) -> Result<Self, TryLockError> {
        file.try_lock()?;
        Ok(Self(file))
    }
}

impl AsRef<File> for LockedFile {
    fn as_ref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    /// A child that is between fork and exec holds the file open a moment longer, and with it a
    /// lock that is not given back.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_back_though_somebody_holds_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let locked = LockedFile::try_lock(File::create(&path).unwrap()).unwrap();
        let again = || LockedFile::try_lock(File::open(&path).unwrap());
        assert!(matches!(again(), Err(TryLockError::WouldBlock)));
        // As a child has it.
        let _copy = locked.as_ref().try_clone().unwrap();
        drop(locked);
        again().unwrap();
    }
}
