//! What is in force: policy, generation, removal, limits. Replaced as a whole, never changed.

use model::{Generation, Policy};
use proto::v1;
use scan_core::{CacheKey, Context, ContextClass, EngineFacts, Settings, generation_in_force};

use crate::config::{Config, Limits, PolicyConfig, RecheckConfig, RemovalConfig};

/// One consistent view; a session takes it once for each check.
#[derive(Debug, Clone)]
pub(crate) struct Force {
    pub(crate) policy: Policy,
    pub(crate) policy_wire: v1::Policy,
    pub(crate) generation: Generation,
    pub(crate) settings: Settings,
    pub(crate) removal: RemovalConfig,
    pub(crate) limits: Limits,
    pub(crate) recheck: RecheckConfig,
    policy_config: PolicyConfig,
}

impl Force {
    pub(crate) fn new(config: &Config, engines: &[EngineFacts]) -> Self {
        let settings = config.unpack.settings();
        Self {
            policy: config.policy.to_policy(false),
            policy_wire: v1::Policy::default(),
            generation: Generation::default(),
            settings,
            removal: config.removal.clone(),
            limits: config.limits.clone(),
            recheck: config.recheck.clone(),
            policy_config: config.policy.clone(),
        }
        .with_engines(engines)
    }

    /// The same with engines as they are now: their rules may change by themselves.
    pub(crate) fn with_engines(&self, engines: &[EngineFacts]) -> Self {
        let context_sensitive = engines.iter().any(|engine| engine.context_sensitive);
        let policy = self.policy_config.to_policy(context_sensitive);
        let named = engines.iter().map(|e| (e.name.as_str(), e.generation));
        Self {
            policy_wire: v1::Policy::from(&policy),
            policy,
            generation: generation_in_force(named, self.settings),
            ..self.clone()
        }
    }

    /// The key of content seen in this context.
    pub(crate) fn key(&self, digest: model::Digest, context: &Context) -> CacheKey {
        let context = if self.policy.context_sensitive {
            ContextClass::of(context)
        } else {
            ContextClass::ANY
        };
        CacheKey {
            digest,
            context,
            generation: self.generation,
            settings: self.settings,
        }
    }
}
