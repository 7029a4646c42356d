//! The limits of one walk, each with its name, default and reason.

/// Deepest nesting that any configuration can allow: bounds the stack, since each level of
/// nesting is a level of recursion.
pub const DEPTH_CEILING: u32 = 64;

/// Output below which the expansion of a member is not looked at: small files of zeros are
/// common and harmless.
pub const RATIO_FREE_BYTES: u64 = 1 << 20;

/// Longest name kept for one component of a member's path; longer ones are cut.
pub const NAME_BYTES_MAX: usize = 1024;

/// Limits of one walk. Values beyond what the crate can bear are clamped by [`crate::walk`]:
/// `depth_max` to [`DEPTH_CEILING`], `ratio_max` to at least 1.
///
/// For comparison, ClamAV 1.4: recursion 17, files 10,000, file size 100 MB, scan size 400 MB,
/// no ratio (beyond its limits it says *clean* unless told otherwise; we say *unscanned*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Levels of containers that are opened; 1 opens the content itself only, 0 opens nothing.
    /// Stops 10,000 archives inside each other, and archives that hold themselves.
    pub depth_max: u32,
    /// Members in all, over every level. Stops archives of a million empty files.
    pub entries_max: u32,
    /// Bytes of one member. Its first so many bytes are still visited.
    pub entry_bytes_max: u64,
    /// Bytes of all members together, which also bounds the memory held by nested members.
    pub total_bytes_max: u64,
    /// Output of one member divided by its packed size, looked at beyond
    /// [`RATIO_FREE_BYTES`] of output. Stops bombs early; deflate cannot pass 1,032.
    pub ratio_max: u32,
    /// Memory that decoders may ask for: dictionaries of xz, 7z and zstd, tables of 7z. What
    /// wants more is [`Unsupported`](crate::IncompleteKind::Unsupported).
    pub window_bytes_max: u64,
}

impl Limits {
    /// Default of `depth_max`.
    pub const DEPTH_MAX: u32 = 16;
    /// Default of `entries_max`.
    pub const ENTRIES_MAX: u32 = 10_000;
    /// Default of `entry_bytes_max`: 256 MiB.
    pub const ENTRY_BYTES_MAX: u64 = 256 << 20;
    /// Default of `total_bytes_max`: 512 MiB.
    pub const TOTAL_BYTES_MAX: u64 = 512 << 20;
    /// Default of `ratio_max`.
    pub const RATIO_MAX: u32 = 1000;
    /// Default of `window_bytes_max`: 512 MiB (`xz -9` wants 64 MiB, `zstd --ultra -22` 128 MiB).
    pub const WINDOW_BYTES_MAX: u64 = 512 << 20;

    /// The same limits within what the crate can bear.
    pub(crate) fn clamped(self) -> Self {
        Self {
            depth_max: self.depth_max.min(DEPTH_CEILING),
            ratio_max: self.ratio_max.max(1),
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth_max: Self::DEPTH_MAX,
            entries_max: Self::ENTRIES_MAX,
            entry_bytes_max: Self::ENTRY_BYTES_MAX,
            total_bytes_max: Self::TOTAL_BYTES_MAX,
            ratio_max: Self::RATIO_MAX,
            window_bytes_max: Self::WINDOW_BYTES_MAX,
        }
    }
}
