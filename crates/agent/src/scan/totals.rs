//! What a scan came to.

/// Counts of a scan, from its beginning, over all its runs where it was resumed. The message's
/// tags are those of the journal.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Totals {
    /// Regular files met, whatever became of them.
    #[prost(uint64, tag = "1")]
    pub files: u64,
    /// Bytes of those that were judged.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
    /// Judged, and nothing matched.
    #[prost(uint64, tag = "3")]
    pub clean: u64,
    /// Malicious, and not released.
    #[prost(uint64, tag = "4")]
    pub found: u64,
    /// Malicious, but an administrator released the content.
    #[prost(uint64, tag = "5")]
    pub released: u64,
    /// Could not be judged (fully).
    #[prost(uint64, tag = "6")]
    pub unscanned: u64,
    /// Something failed: on the appliance, or in reading a file or directory.
    #[prost(uint64, tag = "7")]
    pub errors: u64,
    /// Left out: excluded, too large for `--max-size`, links, devices, other file systems.
    #[prost(uint64, tag = "8")]
    pub skipped: u64,
    /// Files that were found and removed.
    #[prost(uint64, tag = "9")]
    pub removed: u64,
    /// Removals that were ordered and did not succeed.
    #[prost(uint64, tag = "10")]
    pub removals_failed: u64,
    /// Of those that are clean, files whose content is on an allowlist; nobody was asked.
    #[prost(uint64, tag = "11")]
    pub allowlisted: u64,
    /// Files that were judged by what the appliance's filter found in them, and ranges.
    #[prost(uint64, tag = "12")]
    pub reported: u64,
}

impl Totals {
    /// Adds one thing's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.clean += other.clean;
        self.found += other.found;
        self.released += other.released;
        self.unscanned += other.unscanned;
        self.errors += other.errors;
        self.skipped += other.skipped;
        self.removed += other.removed;
        self.removals_failed += other.removals_failed;
        self.allowlisted += other.allowlisted;
        self.reported += other.reported;
    }

    /// clamscan's exit codes: 0 nothing found, 1 something found, 2 something could not be scanned.
    #[must_use]
    pub fn exit_code(&self, complete: bool) -> u8 {
        if self.found > 0 {
            1
        } else if self.unscanned > 0 || self.errors > 0 || !complete {
            2
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let code = |found, unscanned, errors, complete| {
            let totals = Totals {
                found,
                unscanned,
                errors,
                ..Totals::default()
            };
            totals.exit_code(complete)
        };
        assert_eq!(code(0, 0, 0, true), 0);
        assert_eq!(code(1, 1, 1, false), 1);
        assert_eq!(code(0, 1, 0, true), 2);
        assert_eq!(code(0, 0, 1, true), 2);
        assert_eq!(code(0, 0, 0, false), 2);
    }
}
