//! Rule files: found, compiled, identified.

use std::path::{Path, PathBuf};

use model::Generation;
use yara_x::errors::CompileError;
use yara_x::warnings::Warning;
use yara_x::{Compiler, SourceCode};

use crate::context::{self, Reads};
use crate::delta;
use crate::planned::Planned;

/// The version this program is built with; pinned in Cargo.toml.
pub(crate) const YARA_X_VERSION: &str = "1.22.1";
/// Mistakes and warnings that are told.
const MESSAGES_MAX: usize = 100;
/// Folders inside folders.
const FOLDER_DEPTH_MAX: usize = 16;

/// Compiled rules, kept for the life of the process so that scanners can be, too.
pub(crate) struct RuleSet {
    pub(crate) planned: &'static Planned,
    pub(crate) count: u64,
    pub(crate) generation: Generation,
    pub(crate) context: Reads,
    pub(crate) warnings: Vec<String>,
}

/// Compiles all rules below these paths; of those that the manifest `known` has, only what others
/// need. The generation is that of all. Each file is a namespace of its own, so rules of the same
/// name in different files are no conflict.
///
/// # Errors
/// All mistakes, as `file:line: what`; then there are no rules at all.
pub(crate) fn load(paths: &[PathBuf], known: Option<&str>) -> Result<RuleSet, Vec<String>> {
    let files = find(paths).map_err(|error| vec![error])?;
    let mut compiler = Compiler::new();
    // A file that another includes would not be part of the generation.
    compiler.enable_includes(false);
    context::define(&mut compiler)?;
    let mut errors = Vec::new();
    let mut sources = Vec::with_capacity(files.len());
    let mut reads = Reads::default();
    for file in &files {
        let origin = file.display().to_string();
        let source = match std::fs::read(file) {
            Ok(source) => source,
            Err(error) => {
                errors.push(format!("{origin}: {error}"));
                continue;
            }
        };
        compiler.new_namespace(&origin);
        let code = SourceCode::from(source.as_slice()).with_origin(origin.as_str());
        let known = compiler.errors().len();
        if compiler.add_source(code).is_err() {
            let new = compiler.errors().get(known..).unwrap_or_default();
            errors.extend(new.iter().map(|error| describe(error, &origin, &source)));
        }
        reads.add(&source);
        sources.push((origin, source));
    }
    if !errors.is_empty() {
        errors.truncate(MESSAGES_MAX);
        return Err(errors);
    }
    let warnings = slow(&compiler, &sources);
    let generation = generation(&sources);
    if let Some(known) = known {
        sources = delta::unknown(&sources, known)?;
    }
    let planned = Planned::compile(&sources)?;
    let count = planned.plan().len() as u64;
    if count == 0 {
        return Err(vec!["there is no rule in any of the rule paths".to_owned()]);
    }
    Ok(RuleSet {
        planned: Box::leak(Box::new(planned)),
        count,
        generation,
        context: reads,
        warnings,
    })
}

/// What identifies each of the rules below these paths.
///
/// # Errors
/// As for [`load`].
pub(crate) fn manifest(paths: &[PathBuf]) -> Result<String, Vec<String>> {
    let sources = load_sources(paths)?;
    delta::manifest(&sources, generation(&sources))
}

/// Rule files below these paths, each with its path as its namespace.
///
/// # Errors
/// What cannot be read.
pub fn load_sources(paths: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, Vec<String>> {
    let files = find(paths).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    let mut sources = Vec::with_capacity(files.len());
    for file in &files {
        let origin = file.display().to_string();
        match std::fs::read(file) {
            Ok(source) => sources.push((origin, source)),
            Err(error) => errors.push(format!("{origin}: {error}")),
        }
    }
    match errors.is_empty() {
        true => Ok(sources),
        false => Err(errors),
    }
}

/// Rule files in the order of their names. A path that is no file and no folder is an error.
fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for path in paths {
        let kind = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
        if kind.is_dir() {
            find_in(path, FOLDER_DEPTH_MAX, &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn find_in(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", folder.display());
    if depth == 0 {
        return Err(failed(&"folders are nested too deeply"));
    }
    for entry in std::fs::read_dir(folder).map_err(|e| failed(&e))? {
        let path = entry.map_err(|e| failed(&e))?.path();
        if path.is_dir() {
            find_in(&path, depth - 1, files)?;
        } else if path.extension().is_some_and(|e| e == "yar" || e == "yara") {
            files.push(path);
        }
    }
    Ok(())
}

/// Same engine and same rules, same generation, wherever the files lie. Their order and names do
/// not matter either: rules of different files do not see each other.
fn generation(sources: &[(String, Vec<u8>)]) -> Generation {
    let mut digests: Vec<_> = sources
        .iter()
        .map(|(_, source)| *blake3::hash(source).as_bytes())
        .collect();
    digests.sort_unstable();
    let mut hasher = blake3::Hasher::new_derive_key("lazaret engine-yara generation 1");
    for version in [YARA_X_VERSION, env!("CARGO_PKG_VERSION")] {
        hasher.update(version.as_bytes()).update(&[0]);
    }
    for digest in digests {
        hasher.update(&digest);
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    Generation(bytes)
}

/// `file:line: title: what`.
fn describe(error: &CompileError, origin: &str, source: &[u8]) -> String {
    let (line, text) = error.labels().next().map_or((1, String::new()), |label| {
        let line = line_of(source, label.span().start());
        (line, format!(": {}", label.text()))
    });
    format!("{origin}:{line}: {}{text}", error.title())
}

fn line_of(source: &[u8], offset: usize) -> usize {
    let before = source.get(..offset).unwrap_or(source);
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Warnings about rules that slow every scan down; others are for the rules' authors.
fn slow(compiler: &Compiler<'_>, sources: &[(String, Vec<u8>)]) -> Vec<String> {
    let is_slow = |warning: &&Warning| {
        matches!(
            warning,
            Warning::SlowPattern(_) | Warning::PotentiallySlowLoop(_)
        )
    };
    let slow = compiler.warnings().iter().filter(is_slow);
    slow.take(MESSAGES_MAX)
        .map(|warning| {
            let place = warning.labels().next().and_then(|label| {
                let origin = label.origin()?.to_owned();
                let (_, source) = sources.iter().find(|(name, _)| *name == origin)?;
                let line = line_of(source, label.span().start());
                Some(format!("{origin}:{line}: "))
            });
            format!("{}{}", place.unwrap_or_default(), warning.title())
        })
        .collect()
}
