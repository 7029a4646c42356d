//! Content that was judged and is kept for a while: when rules change, it is judged by what is new
//! without asking any guest for it.

use std::sync::Arc;

use bytes::Bytes;
use engine::host::Content;
use model::Digest;
use quick_cache::Weighter;
use scan_core::{CacheKey, Context, ContextClass};

use crate::assembly::Proved;

/// Content behind a descriptor counts for at least this much, so that descriptors are bounded too.
const DESCRIPTOR_BYTES: u64 = 256 * 1024;
/// What each costs besides its bytes.
const FIXED_BYTES: u64 = 512;

/// A content as it was judged.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) key: CacheKey,
    pub(crate) context: Context,
    pub(crate) proved: Proved,
}

/// What is kept, bounded by bytes; what was not asked about for longest goes.
#[derive(Debug)]
pub(crate) struct Retained {
    cache: quick_cache::sync::Cache<(Digest, ContextClass), Arc<Kept>, ByBytes>,
    bytes_max: u64,
}

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<(Digest, ContextClass), Arc<Kept>> for ByBytes {
    fn weight(&self, _: &(Digest, ContextClass), kept: &Arc<Kept>) -> u64 {
        let size = kept.proved.size;
        let content = match kept.proved.content {
            Content::Inline(_) => size,
            Content::Sealed { .. } => size.max(DESCRIPTOR_BYTES),
        };
        content + FIXED_BYTES + kept.context.path.len() as u64
    }
}

impl Retained {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let items = usize::try_from(bytes_max / 32_768).unwrap_or(usize::MAX);
        Self {
            cache: quick_cache::sync::Cache::with_weighter(items.max(1), bytes_max, ByBytes),
            bytes_max,
        }
    }

    /// Keeps it, if there can be room for it.
    pub(crate) fn keep(&self, key: &CacheKey, context: &Context, proved: &Proved) {
        if self.bytes_max == 0 {
            return;
        }
        let content = match &proved.content {
            // Bytes of a frame would keep the whole frame.
            Content::Inline(bytes) => Content::Inline(Bytes::copy_from_slice(bytes)),
            sealed @ Content::Sealed { .. } => sealed.clone(),
        };
        let kept = Kept {
            key: *key,
            context: context.clone(),
            proved: Proved { content, ..*proved },
        };
        self.cache.insert((key.digest, key.context), Arc::new(kept));
    }

    /// Everything, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Kept>> {
        self.cache.iter().map(|(_, kept)| kept).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Generation;
    use scan_core::Settings;

    fn keep(retained: &Retained, n: u32, bytes: usize) {
        let content = vec![0; bytes];
        let digest = Digest::of(&n.to_be_bytes());
        let key = CacheKey {
            digest,
            context: ContextClass::ANY,
            generation: Generation::default(),
            settings: Settings::of(&[]),
        };
        let proved = Proved {
            content: Content::Inline(content.into()),
            size: bytes as u64,
            digest,
        };
        retained.keep(&key, &Context::default(), &proved);
    }

    #[test]
    fn it_is_bounded_by_bytes() {
        let retained = Retained::new(100_000);
        for n in 0..1000 {
            keep(&retained, n, 2000);
        }
        assert!(retained.bytes() <= 100_000);
        assert!(retained.all().len() > 10);
        keep(&retained, 5000, 200_000);
        assert!(retained.all().iter().all(|kept| kept.proved.size < 200_000));
        let none = Retained::new(0);
        keep(&none, 1, 0);
        assert!(none.all().is_empty());
    }
}
