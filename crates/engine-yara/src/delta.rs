//! What changed between two versions of the rules, rule by rule.
//!
//! Rules see each other within their file only, and there only those that they refer to, and
//! globals. So a file falls into *groups*, each of rules that have to be compiled together, and a
//! group whose text is the same judges the same, whatever else changed and wherever it lies.

use std::collections::HashSet;

use readplan::{Plan, Source};

use crate::rules::YARA_X_VERSION;

/// Rule files with their namespaces.
type Sources = [(String, Vec<u8>)];

/// Identity of a group of rules: BLAKE3 of all that it is compiled from.
pub(crate) type Fingerprint = [u8; 16];

/// The first line of a manifest, before the generation: another version may judge otherwise by the
/// same rules.
const HEADER: &str = concat!("lazaret rules 1 ", env!("CARGO_PKG_VERSION"), "+");

fn plan(sources: &Sources) -> Result<Plan, Vec<String>> {
    let list: Vec<Source<'_>> = sources
        .iter()
        .map(|(namespace, text)| Source { namespace, text })
        .collect();
    Plan::compile(&list).map_err(|error| vec![error.to_string()])
}

fn fingerprint(texts: &Sources) -> Fingerprint {
    let mut hasher = blake3::Hasher::new_derive_key("lazaret 1 rules that are compiled together");
    for (_namespace, text) in texts {
        hasher.update(&(text.len() as u64).to_be_bytes());
        hasher.update(text);
    }
    let mut out = [0; 16];
    hasher.finalize_xof().fill(&mut out);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header() -> String {
    format!("{HEADER}{YARA_X_VERSION} ")
}

/// The fingerprints of all groups, one on each line with the names of its rules, below the
/// generation.
///
/// # Errors
/// Mistakes in the rules.
pub(crate) fn manifest(
    sources: &Sources,
    generation: model::Generation,
) -> Result<String, Vec<String>> {
    let plan = plan(sources)?;
    let mut text = format!("{}{generation}\n", header());
    for group in plan.groups() {
        text.push_str(&hex(&fingerprint(&plan.sources_of(group))));
        for rule in group {
            text.push(' ');
            text.push_str(plan.name(*rule).1);
        }
        text.push('\n');
    }
    Ok(text)
}

/// The rules of which a manifest knows nothing, with those that have to be compiled with them.
///
/// # Errors
/// Mistakes in the rules, or no manifest of ours.
pub(crate) fn unknown(
    sources: &Sources,
    manifest: &str,
) -> Result<Vec<(String, Vec<u8>)>, Vec<String>> {
    let mut lines = manifest.lines();
    if !lines
        .next()
        .is_some_and(|first| first.starts_with(&header()))
    {
        return Err(vec![
            "not a manifest of rules that this version knows".to_owned(),
        ]);
    }
    let known: HashSet<&str> = lines.filter_map(|line| line.split(' ').next()).collect();
    let plan = plan(sources)?;
    let groups = plan.groups().iter();
    let new =
        groups.filter(|group| !known.contains(hex(&fingerprint(&plan.sources_of(group))).as_str()));
    let rules: Vec<_> = new.flatten().copied().collect();
    Ok(plan.sources_of(&rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Generation;

    fn rules(files: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        files.iter().map(own).collect()
    }

    #[track_caller]
    fn check(old: &[(&str, &str)], new: &[(&str, &str)], expected: &[&str]) {
        let manifest = manifest(&rules(old), Generation::default()).unwrap();
        let unknown = unknown(&rules(new), &manifest).unwrap();
        let text: String = unknown
            .iter()
            .map(|(_, text)| String::from_utf8_lossy(text))
            .collect();
        for name in ["a", "b", "c", "d"] {
            let is_there = text.contains(&format!("rule {name} "));
            assert_eq!(is_there, expected.contains(&name), "{name}: {text}");
        }
    }

    const A: &str = "rule a { strings: $x = \"one\" condition: $x }\n";
    const A2: &str = "rule a { strings: $x = \"two\" condition: $x }\n";
    const B: &str = "rule b { condition: filesize > 5 }\n";
    const C_NEEDS_A: &str = "rule c { condition: a and filesize > 9 }\n";

    #[test]
    fn only_what_is_new_or_changed() {
        let both = [A, B].concat();
        check(&[("f", A)], &[("f", A)], &[]);
        check(&[("f", A)], &[("f", &both)], &["b"]);
        check(&[("f", &both)], &[("f", A)], &[]);
        check(&[("f", &both)], &[("f", &[A2, B].concat())], &["a"]);
        // Moved, and to another file.
        check(&[("f", &both)], &[("g", B), ("h", A)], &[]);
    }

    #[test]
    fn a_rule_changes_with_those_that_it_refers_to() {
        let old = [A, B, C_NEEDS_A].concat();
        let new = [A2, B, C_NEEDS_A].concat();
        check(&[("f", &old)], &[("f", &new)], &["a", "c"]);
        // The same text refers to another rule in another file.
        check(
            &[("f", &[A, C_NEEDS_A].concat()), ("g", B)],
            &[("f", &[A2, C_NEEDS_A].concat()), ("g", A)],
            &["a", "c"],
        );
    }

    #[test]
    fn a_global_rule_changes_its_file() {
        let global = "global rule d { condition: filesize < 100 }\n";
        check(
            &[("f", &[A, B].concat())],
            &[("f", &[global, A, B].concat())],
            &["a", "b", "d"],
        );
        let other = "global rule d { condition: filesize < 200 }\n";
        check(
            &[("f", &[global, A].concat()), ("g", B)],
            &[("f", &[other, A].concat()), ("g", B)],
            &["a", "d"],
        );
    }

    #[test]
    fn an_import_that_the_rule_does_not_name_changes_nothing() {
        let pe = "import \"pe\"\n";
        check(&[("f", A)], &[("f", &[pe, A].concat())], &[]);
    }

    #[test]
    fn rubbish_is_no_manifest() {
        assert!(unknown(&rules(&[("f", A)]), "").is_err());
    }
}
