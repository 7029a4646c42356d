//! Plain YARA-X over whole files: what [`crate::Planned`] is compared with.

use yara_x::{Rules, Scanner};

use crate::context::{Names, Reads};
use crate::planned::{Judged, compile_whole};
use crate::scan::MATCHES_MAX;

/// Compiled rules.
pub struct Whole {
    rules: Rules,
    reads: Reads,
}

impl Whole {
    /// Compiles rule files, namespaces beside their texts.
    ///
    /// # Errors
    /// The first mistake.
    pub fn compile(sources: &[(String, Vec<u8>)]) -> Result<Self, Vec<String>> {
        let (rules, reads) = compile_whole(sources)?;
        Ok(Self { rules, reads })
    }

    /// A scanner, for one thread.
    pub fn scanner(&self) -> WholeScanner<'_> {
        let mut scanner = Scanner::new(&self.rules);
        scanner.max_matches_per_pattern(MATCHES_MAX);
        WholeScanner {
            scanner,
            reads: self.reads,
        }
    }
}

/// Scans, one file after the other.
pub struct WholeScanner<'r> {
    scanner: Scanner<'r>,
    reads: Reads,
}

impl WholeScanner<'_> {
    /// Runs all rules over a file of this path.
    ///
    /// # Errors
    /// YARA-X failed.
    pub fn scan(&mut self, bytes: &[u8], path: &[u8]) -> Result<Judged, String> {
        Names::of_path(path).tell(self.reads, &mut self.scanner, &[], bytes)?;
        let results = self
            .scanner
            .scan(bytes)
            .map_err(|error| error.to_string())?;
        let rules = results.matching_rules();
        let mut matches: Vec<_> = rules
            .map(|rule| (rule.namespace().to_owned(), rule.identifier().to_owned()))
            .collect();
        matches.sort();
        Ok(Judged {
            matches,
            ..Judged::default()
        })
    }
}
