//! Under which key a verdict may be used again.

use model::{Digest, Generation};

/// What rules may read of a file besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// Path as the guest sees it; hostile bytes.
    pub path: Vec<u8>,
    /// Owner's user id.
    pub uid: u32,
    /// `st_mode`.
    pub mode: u32,
}

/// Files of one class look the same to every rule, apart from their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContextClass([u8; 16]);

impl ContextClass {
    /// The class of all files, where no rule reads anything but content.
    pub const ANY: Self = Self([0; 16]);

    /// The class of files with exactly this name and owner.
    #[must_use]
    pub fn of(context: &Context) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("lazaret 1 context class");
        hasher.update(&context.uid.to_be_bytes());
        hasher.update(&context.mode.to_be_bytes());
        hasher.update(&context.path);
        Self(first_16(&hasher))
    }
}

/// Identity of the settings that a verdict depends on and no generation covers, such as the
/// limits of unpacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings(pub [u8; 16]);

impl Settings {
    /// Identity of a list of numbers; their order is part of it.
    #[must_use]
    pub fn of(numbers: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("lazaret 1 scan settings");
        for number in numbers {
            hasher.update(&number.to_be_bytes());
        }
        Self(first_16(&hasher))
    }
}

/// The generation in force: all engines with their rules, and the settings. Agents know no more of
/// what judges than this, so whatever changes a verdict changes it.
#[must_use]
pub fn generation_in_force<'a>(
    engines: impl IntoIterator<Item = (&'a str, Generation)>,
    settings: Settings,
) -> Generation {
    let mut hasher = blake3::Hasher::new_derive_key("lazaret 1 generation in force");
    hasher.update(&settings.0);
    for (name, generation) in engines {
        hasher.update(&(name.len() as u64).to_be_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&generation.0);
    }
    Generation(first_16(&hasher))
}

/// Everything a verdict depends on. Two scans with equal keys give equal verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// The content.
    pub digest: Digest,
    /// What else of the file the rules may read.
    pub context: ContextClass,
    /// Engines and rules.
    pub generation: Generation,
    /// Limits of unpacking and the like.
    pub settings: Settings,
}

impl CacheKey {
    /// Length of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 80;

    /// The key for a store: digest first, so that keys spread evenly.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..32].copy_from_slice(&self.digest.0);
        out[32..48].copy_from_slice(&self.context.0);
        out[48..64].copy_from_slice(&self.generation.0);
        out[64..].copy_from_slice(&self.settings.0);
        out
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` for any other length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk()?;
        let (context, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        Some(Self {
            digest: Digest(*digest),
            context: ContextClass(*context),
            generation: Generation(*generation),
            settings: Settings(rest.try_into().ok()?),
        })
    }
}

fn first_16(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_changes_the_key() {
        let key = CacheKey {
            digest: Digest::of(b"a"),
            context: ContextClass::ANY,
            generation: Generation([1; 16]),
            settings: Settings::of(&[1, 2]),
        };
        let others = [
            CacheKey {
                digest: Digest::of(b"b"),
                ..key
            },
            CacheKey {
                context: ContextClass::of(&Context::default()),
                ..key
            },
            CacheKey {
                generation: Generation([2; 16]),
                ..key
            },
            CacheKey {
                settings: Settings::of(&[2, 1]),
                ..key
            },
        ];
        for other in others {
            assert_ne!(other.to_bytes(), key.to_bytes());
        }
    }

    #[test]
    fn owner_and_path_do_not_run_into_each_other() {
        let one = Context {
            path: b"\0x".to_vec(),
            uid: 0,
            mode: 1,
        };
        let two = Context {
            path: b"x".to_vec(),
            uid: 0,
            mode: 0x100,
        };
        assert_ne!(ContextClass::of(&one), ContextClass::of(&two));
    }
}
