//! Which rules stay open most often, and what the filter looks for: `open RULES FOLDER [MB]`.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use readplan::{Hits, Known, Plan, Source};

/// Rules that are printed.
const PRINTED: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rules, folder, rest @ ..] = arguments.as_slice() else {
        return Err("open RULES FOLDER [MB]".into());
    };
    let mut left = rest.first().map_or(Ok(64), |mb| mb.parse::<usize>())? << 20;
    let mut texts = Vec::new();
    for path in list(Path::new(rules))? {
        if path.extension().is_some_and(|e| e == "yar" || e == "yara") {
            texts.push((path.display().to_string(), std::fs::read(&path)?));
        }
    }
    let sources: Vec<Source<'_>> = texts
        .iter()
        .map(|(namespace, text)| Source { namespace, text })
        .collect();
    let plan = Plan::compile(&sources)?;
    let filter = plan.filter();
    let mut lengths: BTreeMap<usize, usize> = BTreeMap::new();
    for id in 0..filter.len() as u32 {
        let length = filter.literal(id).map_or(0, |(bytes, _)| bytes.len());
        *lengths.entry(length.min(12)).or_default() += 1;
    }
    println!(
        "{} literals, by length (12: or more): {lengths:?}",
        filter.len()
    );
    println!("{} residents", plan.residents().len());
    let mut files = 0;
    let mut opened: [BTreeMap<usize, usize>; 2] = Default::default();
    let mut hit: BTreeMap<u32, usize> = BTreeMap::new();
    for path in list(Path::new(folder))? {
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        if bytes.is_empty() || bytes.len() > left {
            continue;
        }
        left -= bytes.len();
        files += 1;
        let mut hits = Hits::default();
        plan.search(&bytes, &mut hits);
        for literal in hits.literals() {
            *hit.entry(literal).or_default() += hits.of(literal).len();
        }
        let content = bytes.as_slice();
        let known = |search| Known {
            size: bytes.len() as u64,
            bytes: &content,
            hits: &hits,
            search,
        };
        let first = plan.open(&known(None), &|_| None);
        let second = plan.still_open(&first, &known(Some(&bytes)), &|_| None);
        for (list, opened) in [first, second].iter().zip(&mut opened) {
            list.iter()
                .for_each(|rule| *opened.entry(*rule).or_default() += 1);
        }
    }
    println!("{files} files; {} hits", hit.values().sum::<usize>());
    let mut often: Vec<_> = hit.into_iter().map(|(id, count)| (count, id)).collect();
    often.sort_unstable();
    for (count, id) in often.iter().rev().take(PRINTED) {
        let (bytes, nocase) = filter.literal(*id).unwrap_or_default();
        println!("  {count} {nocase} {}", bytes.escape_ascii());
    }
    for (what, opened) in ["by the filter", "after a close look"].iter().zip(opened) {
        let mut often: Vec<_> = opened
            .into_iter()
            .map(|(rule, count)| (count, rule))
            .collect();
        often.sort_unstable();
        println!("open {what}, most often, without probes:");
        for (count, rule) in often.iter().rev().take(PRINTED) {
            println!("  {count} {}", plan.name(*rule).1);
            for probe in plan.probes_of(*rule).iter().take(3) {
                println!("      {}", plan.probes()[*probe].text.replace('\n', " "));
            }
        }
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(list(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
