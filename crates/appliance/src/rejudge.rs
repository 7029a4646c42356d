//! After rules changed: what is known by the old ones is judged by what is new alone, when somebody
//! asks, and in the background for content that is still here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Coverage, Outcome, Verdict};
use scan_core::{CacheKey, Context, EngineFacts, Finding, Task, generation_in_force, merge};
use tokio::task::spawn_blocking;
use verdict_store::JudgedBy;

use crate::assembly::{Proved, with_sha256};
use crate::config::Config;
use crate::engines::{EngineSet, EngineSource, SharedEngine};
use crate::recheck::tell_holders;
use crate::rule_delta::{Decision, Manifest, RuleDelta};
use crate::scans::{Judged, ScanJob, scan};
use crate::shared::Shared;
use crate::state_dir::replace_file;
use crate::verdicts;

/// What the new rules are called among engines in metrics.
const NEW_RULES: &str = "new_rules";

/// What the job's content is worth by what was known of it before; `None`: all engines must judge.
pub(crate) async fn brought_along(
    shared: &Shared,
    engines: &EngineSet,
    job: &ScanJob,
) -> Option<Judged> {
    rejudge(
        shared,
        engines,
        (&job.key, &job.context, &job.proved),
        "asked",
    )
    .await
}

async fn rejudge(
    shared: &Shared,
    engines: &EngineSet,
    (key, context, proved): (&CacheKey, &Context, &Proved),
    when: &str,
) -> Option<Judged> {
    let delta = shared.delta.read().clone()?;
    let facts = engines.facts();
    if key.generation != delta.to || !is_in_force(&delta, engines, &facts) {
        return None;
    }
    let before = CacheKey {
        generation: delta.from,
        ..*key
    };
    let then = match shared.verdicts.find(&before) {
        Some(then) => then,
        None => shared.verdicts.look_up(&before).await?,
    };
    let count = |how| shared.metrics.kept.rejudged.with([when, how]).inc();
    let is_of_all = |coverage: &Coverage| {
        coverage.bytes_judged == coverage.bytes_total && coverage.ranges.is_empty()
    };
    let decision = match &then.outcome {
        Outcome::Clean if !is_of_all(&then.coverage) => Decision::Drop,
        outcome => delta.decide(outcome),
    };
    let (how, verdict) = match decision {
        Decision::Keep(outcome) => ("kept", Some(Verdict { outcome, ..then })),
        Decision::Rerun(engine) => {
            let found = run(shared, &engine, context, proved).await;
            ("rerun", with_new(then, &delta, proved, found).await)
        }
        Decision::Drop => ("dropped", None),
    };
    let Some(verdict) = verdict else {
        count("dropped");
        return None;
    };
    count(how);
    let engines = facts.into_iter().map(|facts| JudgedBy {
        name: facts.name,
        version: facts.version,
        generation: facts.generation,
    });
    Some(Judged {
        key: *key,
        verdict: Verdict {
            generation: delta.to,
            ..verdict
        },
        engines: engines.collect(),
    })
}

fn is_in_force(delta: &RuleDelta, engines: &EngineSet, facts: &[EngineFacts]) -> bool {
    let named = facts.iter().map(|it| (it.name.as_str(), it.generation));
    generation_in_force(named, engines.settings) == delta.to
}

async fn run(
    shared: &Shared,
    engine: &SharedEngine,
    context: &Context,
    proved: &Proved,
) -> Finding {
    let reads_names = engine.facts().context_sensitive;
    let task = Task {
        content: proved.content.clone(),
        context: reads_names.then(|| context.clone()),
    };
    scan(shared, engine, NEW_RULES, task).await
}

/// Clean content, by what the new rules found. `None`: they did not see it all.
async fn with_new(
    then: Verdict,
    delta: &RuleDelta,
    proved: &Proved,
    found: Finding,
) -> Option<Verdict> {
    if !found.detections.is_empty() {
        let verdict = merge(proved.size, delta.to, Some(proved.digest), &[found]);
        return Some(with_sha256(verdict, &proved.content).await);
    }
    let is_complete = found.incomplete.is_none() && found.error.is_none();
    is_complete.then_some(then)
}

/// Finds out what is new in the rules that are in force, and has it judge what is still here.
pub(crate) async fn follow_rules(
    shared: Arc<Shared>,
    source: Arc<dyn EngineSource>,
    config: Config,
    path: PathBuf,
) {
    let Some(now) = source.manifest(&config).await else {
        return;
    };
    let engines = shared.engines();
    let facts = engines.facts();
    // Rules that were changed once more are followed with the reload that loads them.
    let Some(of) = facts.iter().find(|it| it.generation == now.generation()) else {
        return;
    };
    if let Some(before) = read(&path).await
        && before.generation() != now.generation()
        && let Some(change) = now.since(&before)
    {
        let engine = if change.new_groups == 0 {
            None
        } else {
            let engine = source.delta(&config, &path).await;
            let engine = engine.filter(|it| it.facts().generation == now.generation());
            let Some(engine) = engine else {
                return save(path, now).await;
            };
            Some(engine)
        };
        tracing::info!(
            new = change.new_groups,
            gone = change.gone.len(),
            "rules changed; what was clean is judged by the new ones alone"
        );
        let delta = RuleDelta::new(&of.name, &before, &facts, engines.settings, change, engine);
        *shared.delta.write() = Some(delta);
        save(path, now).await;
        judge_what_is_here(&shared).await;
    } else {
        save(path, now).await;
    }
}

async fn read(path: &Path) -> Option<Manifest> {
    let path = path.to_owned();
    let text = spawn_blocking(move || std::fs::read_to_string(path)).await;
    Manifest::read(text.ok()?.ok()?)
}

async fn save(path: PathBuf, manifest: Manifest) {
    let saved = spawn_blocking(move || replace_file(&path, manifest.text().as_bytes())).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!(%error, "the manifest of rules was not kept; with the next rules all is judged anew");
    }
}

async fn judge_what_is_here(shared: &Shared) {
    let (mut judged_count, mut malicious) = (0u64, Vec::new());
    for kept in shared.retained.all() {
        let key = CacheKey {
            generation: shared.force().generation,
            ..kept.key
        };
        if shared.verdicts.find(&key).is_some() {
            continue;
        }
        let engines = shared.engines();
        let known = (&key, &kept.context, &kept.proved);
        let Some(judged) = rejudge(shared, &engines, known, "background").await else {
            continue;
        };
        judged_count += 1;
        shared.verdicts.keep_in_memory(&judged.key, &judged.verdict);
        let entry = verdicts::entry(&kept.proved, &judged.key, &judged.verdict, judged.engines);
        if let Some(entry) = entry {
            shared.verdicts.keep(&judged.key, &entry).await;
        }
        if let Outcome::Malicious { detections, .. } = &judged.verdict.outcome {
            malicious.push(key.digest);
            let detection = detections.first().map_or("", |it| it.name.as_str());
            became_malicious(shared, &key, detection).await;
        }
    }
    tracing::info!(
        judged = judged_count,
        malicious = malicious.len(),
        "content that was still here is judged by the new rules"
    );
    // In its time: all that is here is judged by then.
    for digest in malicious {
        tell_holders(shared, digest, None).await;
    }
}

/// Whoever allows it is to ask again, and an operator can see who has it.
async fn became_malicious(shared: &Shared, key: &CacheKey, detection: &str) {
    if !shared.force().policy.context_sensitive {
        shared.recall([key.digest]);
    }
    let holders = shared.sightings.holders(key.digest, None, 1000).await;
    let holders = holders.map_or(0, |page| page.guests.len());
    tracing::warn!(digest = %key.digest, detection, holders,
        "content that was clean is malicious by the new rules; `lazaret holders` says who has it");
}
