//! Patterns for paths that a scan leaves out.

use std::str::FromStr;

/// A shell-like pattern over the bytes of a whole path: `*` matches within a component, `**` across
/// components, `?` one byte but `/`, `[a-z]` one byte of a set (`[!…]` of all others); `\` takes
/// the next byte as it is. A pattern without `/` is matched against the last component alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<Part>,
    last_component_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Byte(u8),
    AnyByte,
    OneOf {
        ranges: Vec<(u8, u8)>,
        negated: bool,
    },
    /// `*`
    Within,
    /// `**`
    Across,
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It would match nothing.
    #[error("the pattern is empty")]
    Empty,
    /// `[` without `]`.
    #[error("a '[' is never closed")]
    OpenSet,
    /// `\` with nothing after it.
    #[error("a '\\' has nothing after it")]
    LoneBackslash,
}

impl FromStr for Glob {
    type Err = GlobError;
    fn from_str(text: &str) -> Result<Self, GlobError> {
        let pattern = text.as_bytes();
        // A trailing slash says "directory"; what it names is left out either way.
        let pattern = pattern.strip_suffix(b"/").unwrap_or(pattern);
        if pattern.is_empty() {
            return Err(GlobError::Empty);
        }
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            parts.push(match first {
                b'*' if rest.first() == Some(&b'*') => {
                    rest = rest.get(1..).unwrap_or_default();
                    Part::Across
                }
                b'*' => Part::Within,
                b'?' => Part::AnyByte,
                b'[' => parse_set(&mut rest)?,
                b'\\' => {
                    let (&byte, after) = rest.split_first().ok_or(GlobError::LoneBackslash)?;
                    rest = after;
                    Part::Byte(byte)
                }
                byte => Part::Byte(byte),
            });
        }
        Ok(Self {
            parts,
            last_component_only: !pattern.contains(&b'/'),
        })
    }
}

/// Reads what follows a `[`, up to and with its `]`.
fn parse_set(rest: &mut &[u8]) -> Result<Part, GlobError> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    let body = if negated { &rest[1..] } else { *rest };
    // A `]` that comes first is one of the set.
    let close = body.iter().skip(1).position(|byte| *byte == b']');
    let close = close.ok_or(GlobError::OpenSet)? + 1;
    let (mut set, after) = body.split_at(close);
    let mut ranges = Vec::new();
    loop {
        set = match set {
            [] => break,
            [low, b'-', high, after @ ..] => {
                ranges.push((*low, *high));
                after
            }
            [byte, after @ ..] => {
                ranges.push((*byte, *byte));
                after
            }
        };
    }
    *rest = &after[1..];
    Ok(Part::OneOf { ranges, negated })
}

impl Glob {
    /// Whether the pattern matches this absolute path.
    #[must_use]
    pub fn matches(&self, path: &[u8]) -> bool {
        let text = if self.last_component_only {
            path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
        } else {
            path
        };
        // Which parts may come next, all at once: parts times bytes steps, whatever the pattern.
        let mut next = vec![false; self.parts.len() + 1];
        next[0] = true;
        self.pass_stars(&mut next);
        for byte in text {
            let mut after = vec![false; next.len()];
            for (at, part) in self.parts.iter().enumerate().filter(|(at, _)| next[*at]) {
                match part {
                    Part::Across => after[at] = true,
                    Part::Within => after[at] |= *byte != b'/',
                    one => after[at + 1] |= one.matches_byte(*byte),
                }
            }
            self.pass_stars(&mut after);
            next = after;
        }
        next[self.parts.len()]
    }

    /// A star may also match nothing more.
    fn pass_stars(&self, next: &mut [bool]) {
        for (at, part) in self.parts.iter().enumerate() {
            if next[at] && matches!(part, Part::Within | Part::Across) {
                next[at + 1] = true;
            }
        }
    }
}

impl Part {
    fn matches_byte(&self, byte: u8) -> bool {
        match self {
            Self::Byte(one) => byte == *one,
            Self::AnyByte => byte != b'/',
            Self::OneOf { ranges, negated } => {
                let listed = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&byte));
                listed != *negated && byte != b'/'
            }
            Self::Within | Self::Across => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        let glob: Glob = pattern.parse().unwrap();
        for path in matching {
            assert!(glob.matches(path.as_bytes()), "{pattern} misses {path}");
        }
        for path in others {
            assert!(!glob.matches(path.as_bytes()), "{pattern} hits {path}");
        }
    }

    #[test]
    fn patterns() {
        check("/a/b", &["/a/b"], &["/a", "/a/b/c", "/x/a/b", "/a/B"]);
        check("/a/b/", &["/a/b"], &["/a/b/c"]);
        check(
            "*.log",
            &["/a/b.log", "/.log", "/x/a.b.log"],
            &["/a.log/b", "/a.logs"],
        );
        check(
            "/var/*/x",
            &["/var/a/x", "/var//x"],
            &["/var/a/b/x", "/var/x"],
        );
        check(
            "/var/**/x",
            &["/var/a/x", "/var/a/b/x"],
            &["/var/x", "/var/a/xx"],
        );
        check(
            "/**/node_modules",
            &["/a/node_modules", "/a/b/node_modules"],
            &["/a/node_modules/x"],
        );
        check(
            "**/t*p/**",
            &["/a/tmp/x", "/tp/x/y", "/a/trip/tmp/z"],
            &["/tmp"],
        );
        check("?b", &["/ab", "/x/ab"], &["/b", "/aab"]);
        check("[a-c]x", &["/ax", "/cx"], &["/dx"]);
        check("[!a-c]x", &["/dx"], &["/ax", "/x"]);
        check("[]x]y", &["/]y", "/xy"], &["/y"]);
        check(r"a\*b", &["/a*b"], &["/aab"]);
        check(
            "/a*b*c/**d",
            &["/abc/d", "/a1b2c/x/yd"],
            &["/abc/dx", "/ab/c/d"],
        );
    }

    #[test]
    fn stars_of_both_kinds() {
        check("/**a/*R", &["/a/ba/R", "/a/R"], &["/a/ba/x/R"]);
        check(
            "/**/*.d/x*",
            &["/a/b.d/c/e.d/x1", "/a.d/b.d/x"],
            &["/a.d/b/x"],
        );
    }

    #[test]
    fn no_pattern_takes_long() {
        let glob: Glob = "/**a*a**a*a**a*a**a*a**b".parse().unwrap();
        let path = [b"/".as_slice(), &[b'a'; 100_000]].concat();
        assert!(!glob.matches(&path));
    }

    #[test]
    fn refused() {
        assert_eq!("".parse::<Glob>(), Err(GlobError::Empty));
        assert_eq!("[a".parse::<Glob>(), Err(GlobError::OpenSet));
        assert_eq!("[]".parse::<Glob>(), Err(GlobError::OpenSet));
        assert_eq!("a\\".parse::<Glob>(), Err(GlobError::LoneBackslash));
    }
}
