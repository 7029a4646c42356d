//! Configuration of an appliance: TOML with every limit named, unknown keys refused, and values
//! checked while they are read, so that an error names file, line and key.

mod engines;
mod fleet;
mod limits;
mod policy;
mod recheck;
mod sightings;
mod value;
mod verdict_store;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use allowlist::PublicKey;
use connectors::ConnectorConfig;
use serde::Deserialize;

use crate::chunk_store::ChunkLimits;

pub use engines::{ClamdConfig, EngineLimits, EnginesConfig, UnpackConfig, YaraConfig};
pub use fleet::{AreaConfig, ControllerConfig, FleetConfig, RuleConfig, StormConfig};
pub use limits::Limits;
pub use policy::{PolicyConfig, RemovalAction, RemovalConfig};
pub use recheck::RecheckConfig;
pub use sightings::SightingsConfig;
pub use value::Ranged;
pub use verdict_store::VerdictStoreConfig;

/// Files of chunks of images at once. Each chunk that no guest has sent is looked for in all of them.
const IMAGES_MAX: usize = 64;

/// Everything that `lazaret up` reads. Every key has a default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The appliance's name, for people. Unset: the host's name.
    pub name: Option<String>,
    /// Where state is kept. Unset: `/var/lib/lazaret`, or what the command line says.
    pub state_dir: Option<PathBuf>,
    /// Where the socket of the `lazaret` command lies. Unset: the state folder.
    pub runtime_dir: Option<PathBuf>,
    /// Addresses.
    pub listen: ListenConfig,
    /// Logs.
    pub log: LogConfig,
    /// What agents are told.
    pub policy: PolicyConfig,
    /// What is done with malicious files.
    pub removal: RemovalConfig,
    /// Copies of the agents' allowlists.
    pub allowlist: AllowlistConfig,
    /// Verdicts shared with other appliances.
    pub verdict_store: VerdictStoreConfig,
    /// Which guests were seen with which content.
    pub sightings: SightingsConfig,
    /// Content that guests hold, judged again when rules change.
    pub recheck: RecheckConfig,
    /// How content that is like something known is asked for.
    pub chunks: ChunksConfig,
    /// Engines. Unset: yara with the rules found beside the program or in `/etc/lazaret/rules`.
    pub engine: EnginesConfig,
    /// Limits of unpacking.
    pub unpack: UnpackConfig,
    /// This appliance's place in the fleet.
    pub fleet: FleetConfig,
    /// The controller that runs beside it.
    pub controller: ControllerConfig,
    /// What tells that controller where VMs are.
    pub connector: Vec<ConnectorConfig>,
    /// Every other limit.
    pub limits: Limits,
}

/// Copies of the lists that agents use, so that malicious content on them is recalled. Nothing is
/// let through by them here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowlistConfig {
    /// Signed lists, as `lazaret allowlist` makes them. A file that changes is loaded anew.
    pub files: Vec<PathBuf>,
    /// The public keys that may have signed them, 64 hexadecimal digits each.
    pub trusted_keys: Vec<PublicKey>,
}

/// Content of which only what is new is asked for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChunksConfig {
    /// Smaller content is always sent whole. 0: all is. 256 KiB.
    pub size_min_bytes: Ranged<0>,
    /// Whose content a guest's is compared with. `guest`: its own.
    pub share: ChunkShare,
    /// Files of `lazaret chunks build`: what guests were made of, compared with for all of them.
    pub images: Vec<PathBuf>,
}

/// Whose content a guest's is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChunkShare {
    /// Its own: no guest learns what another has.
    Guest,
    /// That of all guests, which then can find out whether some guest has sent a chunk that they
    /// know.
    All,
}

impl Default for ChunksConfig {
    fn default() -> Self {
        Self {
            size_min_bytes: Ranged::new(256 << 10),
            share: ChunkShare::Guest,
            images: Vec::new(),
        }
    }
}

/// Addresses to listen on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenConfig {
    /// For agents. Port 0: any.
    pub link: SocketAddr,
    /// For guests that join. Port 0: any.
    pub enrol: SocketAddr,
    /// For Prometheus; loopback only. Unset: no metrics are served.
    pub metrics: Option<SocketAddr>,
    /// How guests reach `link`, as host:port, first the best. Unset: the address of `link`, with
    /// this host's name in place of an unspecified address.
    pub advertise: Vec<String>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            link: SocketAddr::from(([0, 0, 0, 0], 7443)),
            enrol: SocketAddr::from(([0, 0, 0, 0], 7444)),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
            advertise: Vec::new(),
        }
    }
}

/// Logs on standard error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: daemon::log::LogFormat,
    /// Such as `info,appliance=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: daemon::log::LogFormat::Text,
            filter: "info".into(),
        }
    }
}

/// A combination of values that cannot work. Values that are wrong by themselves are refused
/// where they are read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigConflict {
    /// The key, such as `limits.upload_credit_bytes`.
    pub key: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Config {
    pub(crate) fn chunk_limits(&self) -> ChunkLimits {
        ChunkLimits {
            size_min_bytes: self.chunks.size_min_bytes.get(),
            bytes_max: self.limits.chunk_bytes_max.get(),
            guest_bytes_max: self.limits.guest_chunk_bytes_max.get(),
            shared: self.chunks.share == ChunkShare::All,
        }
    }

    /// Checks what no single key can show.
    ///
    /// # Errors
    /// The first key that does not go with another.
    pub fn validate(&self) -> Result<(), ConfigConflict> {
        let conflict = |key, problem: String| Err(ConfigConflict { key, problem });
        let largest = self.policy.size_max_bytes.get();
        if !self.allowlist.files.is_empty() && self.allowlist.trusted_keys.is_empty() {
            let problem = "no key is trusted, so no list can be".to_owned();
            return conflict("allowlist.trusted_keys", problem);
        }
        if !self.chunks.images.is_empty() && !self.chunk_limits().keeps(u64::MAX) {
            let problem = "of no use while chunks.size_min_bytes, limits.chunk_bytes_max or limits.guest_chunk_bytes_max is 0";
            return conflict("chunks.images", problem.to_owned());
        }
        if self.chunks.images.len() > IMAGES_MAX {
            let problem = format!("{} files; at most {IMAGES_MAX}", self.chunks.images.len());
            return conflict("chunks.images", problem);
        }
        if self.verdict_store.url.is_some() && self.verdict_store.key_file.is_none() {
            let problem = "needed beside url: without a key anybody who can write to the store could make verdicts";
            return conflict("verdict_store.key_file", problem.to_owned());
        }
        let limits = &self.limits;
        if limits.guest_bytes_in_flight_max.get() < largest {
            return conflict(
                "limits.guest_bytes_in_flight_max",
                format!(
                    "must be at least policy.size_max_bytes ({largest}), or the largest files can never be sent"
                ),
            );
        }
        let held = if largest > limits.upload_memory_max_bytes.get() {
            ("limits.spool_bytes_max", limits.spool_bytes_max)
        } else {
            ("limits.memory_bytes_max", limits.memory_bytes_max)
        };
        let budget = limits.budget();
        let percent = limits.guest_share_max_percent.get();
        let share = budget.guest_share(held.1.get());
        if share < largest {
            return conflict(
                held.0,
                format!(
                    "limits.guest_share_max_percent ({percent} %) of it is {share}, and must be at least policy.size_max_bytes ({largest}), or the largest files can never be held"
                ),
            );
        }
        let share = budget.guest_share(limits.memory_bytes_max.get());
        let in_memory = limits.upload_memory_max_bytes.get();
        if share < in_memory.min(largest) {
            return conflict(
                "limits.upload_memory_max_bytes",
                format!(
                    "must be at most limits.guest_share_max_percent ({percent} %) of limits.memory_bytes_max, which is {share}"
                ),
            );
        }
        Ok(())
    }
}

/// By detection name; a trailing `*` stands for anything.
pub type RemovalByName = BTreeMap<String, RemovalAction>;

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Disposition, UnscannedReason};

    fn parse(text: &str) -> Result<Config, String> {
        daemon::config::parse(text, "lazaret.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_needed() {
        let config = parse("").unwrap();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.policy.to_policy(false).validate(), Ok(()));
    }

    #[test]
    fn everything_can_be_said() {
        let config = parse(
            r#"
            name = "a1"
            [listen]
            link = "[::1]:0"
            advertise = ["a1.example:7443"]
            [policy]
            open_budget_ms = 3000
            on_unscanned = "deny"
            [policy.unscanned]
            encrypted = "allow"
            [removal]
            on_malicious = "delete"
            by_name = { "Eicar*" = "deny" }
            [engine.yara]
            rules = ["/srv/rules"]
            workers = 3
            [engine.clamd]
            socket = "/run/clamav/clamd.ctl"
            [unpack]
            depth_max = 4
            [limits]
            sessions_max = 7
            "#,
        )
        .unwrap();
        let policy = config.policy.to_policy(true);
        assert_eq!(policy.on_unscanned, Disposition::Deny);
        let encrypted = policy.unscanned_rules.get(&UnscannedReason::Encrypted);
        assert_eq!(encrypted, Some(&Disposition::Allow));
        assert!(policy.context_sensitive);
        assert_eq!(config.removal.by_name.len(), 1);
        assert_eq!(config.limits.sessions_max.get(), 7);
    }

    #[track_caller]
    fn refused(text: &str, place: &str, why: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(why), "{error}");
    }

    #[test]
    fn errors_say_where_and_what() {
        refused(
            "[limits]\nsessions_max = 0\n",
            "lazaret.toml:2:16: limits.sessions_max",
            "between 1 and",
        );
        refused(
            "[policy]\nopen_budget_ms = 5\n",
            "lazaret.toml:2:18: policy.open_budget_ms",
            "between 10 and 600000",
        );
        refused(
            "[policy.unscanned]\nencripted = 'deny'\n",
            "lazaret.toml:2:",
            "encripted",
        );
        refused(
            "[removal]\non_malicious = 'eat'\n",
            "lazaret.toml:2:16: removal.on_malicious",
            "quarantine",
        );
        refused(
            "[allowlist]\ntrusted_keys = ['zz']\n",
            "lazaret.toml:2:16: allowlist.trusted_keys",
            "64 hexadecimal digits",
        );
        refused(
            "[verdict_store]\nurl = 'mysql://x'\n",
            "lazaret.toml:2:7: verdict_store.url",
            "must begin with postgres://",
        );
        refused("[engin]\n", "lazaret.toml:1:", "engin");
    }

    #[test]
    fn values_that_cannot_work_together() {
        let config = parse("[limits]\nguest_bytes_in_flight_max = 1000\n").unwrap();
        let key = config.validate().unwrap_err().key;
        assert_eq!(key, "limits.guest_bytes_in_flight_max");
        let conflict = |text: &str| parse(text).unwrap().validate().unwrap_err();
        let spool = conflict("[limits]\nspool_bytes_max = 1000000000\n");
        assert_eq!(spool.key, "limits.spool_bytes_max");
        assert!(spool.problem.contains("is 250000000,"), "{spool}");
        let nobody = conflict("[allowlist]\nfiles = ['/a']\n");
        assert_eq!(nobody.key, "allowlist.trusted_keys");
        let keyless = conflict("[verdict_store]\nurl = 'redis://cache'\n");
        assert_eq!(keyless.key, "verdict_store.key_file");
        let memory =
            conflict("[limits]\nguest_share_max_percent = 1\nspool_bytes_max = 90000000000\n");
        assert_eq!(memory.key, "limits.upload_memory_max_bytes");
    }

    #[test]
    fn a_policy_changes_its_revision_with_any_field() {
        let one = parse("").unwrap().policy;
        let other = parse("[policy]\nscan_on_close = false\n").unwrap().policy;
        let revisions = [
            one.to_policy(false).revision,
            one.to_policy(true).revision,
            other.to_policy(false).revision,
        ];
        assert_eq!(one.to_policy(false).revision, revisions[0]);
        assert!(revisions[0] != revisions[1] && revisions[0] != revisions[2]);
    }
}
