//! What happened, in numbers.

/// Totals since the start. The caller copies them into its metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Answers from the verdict cache.
    pub cache_hits: u64,
    /// Openers whose file was not in the cache.
    pub cache_misses: u64,
    /// Openers that waited on a request that was under way already.
    pub coalesced: u64,
    /// Openers answered because their deadline came.
    pub deadlines: u64,
    /// Files with a writer: judged, never remembered.
    pub writer_held: u64,
    /// Files whose content was listed.
    pub allowlisted: u64,
    /// Checks sent.
    pub checks: u64,
    /// Replies to exchanges that are over.
    pub stale_replies: u64,
    /// Malicious verdicts after a provisional allow.
    pub late_malicious: u64,
    /// Files hashed again because they changed.
    pub restarts: u64,
    /// Close-write and ledger work dropped because the queue was full.
    pub background_dropped: u64,
    /// Scans after a deadline that were left to the ledger.
    pub kept_dropped: u64,
    /// Verdicts that were to stand in the kernel.
    pub standing_placed: u64,
    /// Of those, which were not placed: a writer was there, or the kernel would not.
    pub standing_refused: u64,
    /// Of those, which a writer brought down.
    pub standing_broken: u64,
    /// Of those, which gave their place up to another file's.
    pub standing_displaced: u64,
}
