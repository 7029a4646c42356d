//! The operators' references must name every configuration key and every metric there is.

use std::path::Path;

/// Keys are the public fields of the configuration's structs; tables are keys too.
fn keys(source: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(source).expect("source");
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let fields = code
        .lines()
        .filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "));
    let keys = fields.map(|(name, _)| name).filter(|name| {
        let word = |c: char| c.is_ascii_lowercase() || c == '_';
        name.chars().all(word)
    });
    keys.map(str::to_owned).collect()
}

fn check(reference: &str, sources: &[&str], not_keys: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join(reference)).expect("reference");
    let said = |key: &str| {
        text.lines().any(|line| {
            let line = line.trim_start_matches("# ");
            let table = |name: &str| name.split('.').any(|part| part == key);
            line.starts_with(&format!("{key} ="))
                || (line.starts_with('[') && table(line.trim_matches(['[', ']'])))
        })
    };
    let mut count = 0;
    for source in sources {
        for key in keys(&root.join(source)) {
            assert!(
                said(&key) || not_keys.contains(&key.as_str()),
                "{reference} does not name {key} of {source}"
            );
            count += 1;
        }
    }
    assert!(count > 20, "only {count} keys found: did the sources move?");
}

#[test]
fn every_key_of_lazaret_toml_is_named() {
    let sources = [
        "mod",
        "engines",
        "fleet",
        "limits",
        "policy",
        "recheck",
        "sightings",
        "verdict_store",
    ]
    .map(|name| format!("crates/appliance/src/config/{name}.rs"));
    // Of types that are made from the configuration, or of its errors.
    let not_keys = ["job_timeout", "key", "problem"];
    check(
        "docs/operators/lazaret.toml",
        &sources.each_ref().map(String::as_str),
        &not_keys,
    );
}

#[test]
fn every_key_of_agent_toml_is_named() {
    check(
        "docs/operators/agent.toml",
        &[
            "crates/agent-config/src/lib.rs",
            "crates/agent-config/src/enrol.rs",
        ],
        // For tests alone.
        &["sys_dir"],
    );
}

#[test]
fn the_references_can_be_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operators");
    let lazaret: appliance::Config =
        daemon::config::load(root.join("lazaret.toml")).expect("well-formed");
    lazaret.validate().expect("usable");
    let agent: agent::AgentConfig =
        daemon::config::load(root.join("agent.toml")).expect("well-formed");
    agent.validate().expect("usable");
}

/// Names of metrics are the first argument of what registers them.
fn metrics(source: &Path, prefix: &str) -> Vec<String> {
    let code = std::fs::read_to_string(source).expect("source");
    let calls = ["counter(", "counters(", "gauge(", "gauges(", "histogram("];
    let arguments = calls.iter().flat_map(|call| code.split(call).skip(1));
    let literals =
        arguments.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    literals
        .map(|name| {
            let name = name.strip_suffix("_total").unwrap_or(name);
            let prefix = if name.starts_with("lazaret_") {
                ""
            } else {
                prefix
            };
            format!("{prefix}{name}")
        })
        .collect()
}

#[test]
fn every_metric_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/operators/metrics.md")).expect("reference");
    for (source, prefix) in [
        ("crates/appliance/src/metrics.rs", "lazaret_"),
        ("crates/agent/src/metrics.rs", "lazaret_agent_"),
    ] {
        let names = metrics(&root.join(source), prefix);
        assert!(names.len() > 20, "{source}: {names:?}: did the names move?");
        for name in names {
            let said = text.contains(&format!("`{name}`"));
            assert!(said, "metrics.md does not name {name} of {source}");
        }
    }
}
