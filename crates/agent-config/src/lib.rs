//! The agent's configuration: `/etc/lazaret/agent.toml`. Unknown keys are refused. A crate of its own,
//! compiled for size: what reads all these keys would be a fiftieth of the agent's program.

mod enrol;

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use agent_core::CoreLimits;
use allowlist::PublicKey;
use daemon::config::ConfigError;
use daemon::log::LogFormat;
use serde::Deserialize;

pub use enrol::Enrol;

/// Where the configuration is looked for unless `--config` says otherwise.
pub const CONFIG_PATH: &str = "/etc/lazaret/agent.toml";

/// Everything an administrator may set; each key has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Key and certificate, ledger, quarantine. Kept across reboots.
    pub state_dir: PathBuf,
    /// The control socket, and a key that is never to reach a disk.
    pub runtime_dir: PathBuf,
    /// Where the kernel tells of this machine: `/sys`. Not to be configured; tests have another.
    #[serde(skip)]
    pub sys_dir: PathBuf,
    /// How a guest that has no identity gets one by itself.
    pub enrol: Enrol,
    /// Whom to ask.
    pub appliance: Appliance,
    /// What is guarded.
    pub guard: Guard,
    /// Content that is known to be good.
    pub allowlist: Allowlist,
    /// Limits on memory, descriptors and time.
    pub limits: Limits,
    /// Logs.
    pub log: Log,
    /// Metrics.
    pub metrics: Metrics,
}

/// Whom to ask.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Appliance {
    /// Appliances as host:port, best first. Empty: those named at enrolment.
    pub addresses: Vec<String>,
    /// Follow the lists that the fleet's placer sends; those above are then the last resort.
    /// Unset: only where none are configured above.
    pub follow_lists: Option<bool>,
    /// How often the appliances of such a list are measured, in seconds. 0: never.
    pub measure_s: u64,
}

impl Appliance {
    /// Whether the placer's lists are followed.
    #[must_use]
    pub fn follows_lists(&self) -> bool {
        self.follow_lists.unwrap_or(self.addresses.is_empty())
    }
}

impl Default for Appliance {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            follow_lists: None,
            measure_s: 60,
        }
    }
}

/// What is guarded.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// Files and folders whose opens are judged. The file systems they are on, and those mounted
    /// below them, are marked as a whole.
    pub include: Vec<PathBuf>,
    /// Files and folders below those that are let through unseen.
    pub exclude: Vec<PathBuf>,
    /// Where file systems are mounted whose files may be held open while a verdict on them stands
    /// in the kernel, which makes opening them cost nothing. One that holds open files cannot be
    /// unmounted, so name only those that stay. Verdicts on others are cached by the agent.
    pub standing_filesystems: Vec<PathBuf>,
    /// Types of file systems that are not marked, as in `/proc/filesystems`.
    pub exclude_filesystems: Vec<String>,
    /// Programs, by the path of their executable, whose opens are let through unseen. Whoever
    /// may write to that file may open everything: name only what belongs to root.
    pub exclude_programs: Vec<PathBuf>,
}

/// Content that is known to be good: it is allowed once it was hashed, and nobody is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowlist {
    /// Signed lists, as `lazaret allowlist` makes them. A file that changes is loaded anew.
    pub files: Vec<PathBuf>,
    /// Names of lists that are fetched from the appliance, and again when it has a newer one.
    pub names: Vec<String>,
    /// The public keys that may have signed them, 64 hexadecimal digits each.
    pub trusted_keys: Vec<PublicKey>,
}

/// Limits on memory, descriptors and time. Each bounds what a guest could otherwise use up.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Openers that wait at once.
    pub openers_max: usize,
    /// Files that wait for a place among those in flight.
    pub queue_len_max: usize,
    /// Files being hashed, asked about or sent at once; an appliance may say less.
    pub in_flight_max: usize,
    /// Of those, files nobody waits for.
    pub background_in_flight_max: usize,
    /// Scans that go on after all their openers were answered by policy.
    pub kept_max: usize,
    /// Verdicts remembered.
    pub cache_entries_max: usize,
    /// Verdicts that stand in the kernel; each holds a descriptor. 0: none do.
    pub standing_max: usize,
    /// Seconds that a deleted file may keep its space because its verdict stands.
    pub standing_deleted_max_s: u64,
    /// Milliseconds that openers wait for a lost link.
    pub link_grace_ms: u64,
    /// Seconds that a scan nobody waits for may go on.
    pub scan_time_max_s: u64,
    /// How often a file that keeps changing is hashed, with pauses that grow to 100 ms in
    /// between.
    pub attempts_max: u32,
    /// Threads that hash.
    pub digest_threads: usize,
    /// Threads that send content.
    pub upload_threads: usize,
    /// Seconds without progress after which an upload is given up.
    pub upload_stall_max_s: u64,
    /// Files answered without a verdict that are remembered.
    pub ledger_entries_max: usize,
    /// Ledger entries that are paid back at once.
    pub ledger_in_flight_max: usize,
    /// Bytes that are remembered of where judged files are, so that they can be judged again when rules
    /// change. 0: files are judged again when they are opened.
    pub whereabouts_bytes_max: usize,
    /// Removal orders that wait to be carried out.
    pub orders_queue_len_max: usize,
    /// Results of orders kept for orders that come again.
    pub order_results_max: usize,
    /// Bytes in quarantine.
    pub quarantine_bytes_max: u64,
    /// Opens of which the trace tells where their time went.
    pub trace_entries_max: usize,
    /// Connections to the control socket at once.
    pub control_connections_max: usize,
    /// Bytes of one allowlist, all of which are held in memory.
    pub allowlist_bytes_max: u64,
    /// Seconds over which a fleet's agents spread the fetching of a new list.
    pub allowlist_fetch_spread_s: u64,
    /// When so many listed digests were recalled, nothing is allowed by list any more.
    pub allowlist_recalls_max: usize,
    /// Bytes of the appliance's filter, and of what is sent of it; a larger one is not fetched.
    pub filter_bytes_max: u64,
    /// Seconds over which a fleet's agents spread the fetching of a new filter.
    pub filter_fetch_spread_s: u64,
}

/// Logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// Such as `info` or `info,link=debug`.
    pub filter: String,
    /// Lines a minute of each kind that a guest can trigger.
    pub guest_lines_per_minute: u32,
}

/// Metrics.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Loopback address and port, such as `127.0.0.1:9641`. Unset: none are served.
    pub listen: Option<SocketAddr>,
}

/// A configuration that is well-formed and still cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableConfig {
    /// Nothing is guarded.
    #[error("guard.include: nothing is guarded; name at least one folder")]
    NothingGuarded,
    /// Paths are compared with those the kernel gives.
    #[error("{key}: {} must be absolute, without . and ..", path.display())]
    Path {
        /// The key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A limit of nothing, or one beyond sense.
    #[error("{key}: {value} is not between {min} and {max}")]
    Limit {
        /// The key.
        key: String,
        /// Its value.
        value: u64,
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
    },
    /// An appliance or a controller without port.
    #[error("{key}: {address:?} is not host:port")]
    Address {
        /// The key.
        key: &'static str,
        /// Its value.
        address: String,
    },
    /// Nobody could have signed the lists.
    #[error("allowlist.trusted_keys: no key is trusted, so no list can be")]
    NoKey,
    /// Metrics have neither TLS nor authentication.
    #[error("metrics.listen: {0} is not a loopback address")]
    NotLoopback(SocketAddr),
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/lazaret-agent".into(),
            runtime_dir: "/run/lazaret-agent".into(),
            sys_dir: "/sys".into(),
            enrol: Enrol::default(),
            appliance: Appliance::default(),
            guard: Guard::default(),
            allowlist: Allowlist::default(),
            limits: Limits::default(),
            log: Log::default(),
            metrics: Metrics::default(),
        }
    }
}

impl Default for Guard {
    fn default() -> Self {
        let excluded = "autofs bpf binfmt_misc cgroup cgroup2 configfs debugfs devpts devtmpfs \
                        efivarfs fusectl hugetlbfs mqueue nsfs proc pstore rpc_pipefs \
                        securityfs selinuxfs sysfs tracefs";
        Self {
            include: vec!["/".into()],
            exclude: Vec::new(),
            standing_filesystems: ["/", "/usr", "/var", "/home", "/opt", "/srv"]
                .map(PathBuf::from)
                .to_vec(),
            exclude_filesystems: excluded.split_whitespace().map(str::to_owned).collect(),
            exclude_programs: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let core = CoreLimits::default();
        Self {
            openers_max: core.openers_max,
            queue_len_max: core.queue_len_max,
            in_flight_max: core.in_flight_max,
            background_in_flight_max: core.background_in_flight_max,
            kept_max: core.kept_max,
            cache_entries_max: core.cache_entries_max,
            standing_max: core.standing_max,
            standing_deleted_max_s: 30,
            link_grace_ms: core.link_grace.as_millis() as u64,
            scan_time_max_s: core.scan_time_max.as_secs(),
            attempts_max: core.attempts_max,
            digest_threads: 2,
            upload_threads: 2,
            upload_stall_max_s: 30,
            ledger_entries_max: 16_384,
            ledger_in_flight_max: 4,
            whereabouts_bytes_max: 1 << 20,
            orders_queue_len_max: 256,
            order_results_max: 256,
            quarantine_bytes_max: 4 << 30,
            trace_entries_max: 64,
            control_connections_max: 16,
            allowlist_bytes_max: 512 << 20,
            allowlist_fetch_spread_s: 60,
            allowlist_recalls_max: 65_536,
            filter_bytes_max: 8 << 20,
            filter_fetch_spread_s: 60,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
            guest_lines_per_minute: 120,
        }
    }
}

impl Limits {
    /// What of it the core obeys.
    #[must_use]
    pub fn core(&self) -> CoreLimits {
        CoreLimits {
            openers_max: self.openers_max,
            queue_len_max: self.queue_len_max,
            in_flight_max: self.in_flight_max,
            background_in_flight_max: self.background_in_flight_max,
            kept_max: self.kept_max,
            cache_entries_max: self.cache_entries_max,
            standing_max: self.standing_max,
            link_grace: Duration::from_millis(self.link_grace_ms),
            scan_time_max: Duration::from_secs(self.scan_time_max_s),
            attempts_max: self.attempts_max,
        }
    }

    fn validate(&self) -> Result<(), UnusableConfig> {
        const MANY: u64 = 1 << 20;
        let counts = [
            ("openers_max", self.openers_max, 1, MANY),
            ("queue_len_max", self.queue_len_max, 1, MANY),
            ("in_flight_max", self.in_flight_max, 1, 4096),
            (
                "background_in_flight_max",
                self.background_in_flight_max,
                1,
                4096,
            ),
            ("kept_max", self.kept_max, 1, MANY),
            ("cache_entries_max", self.cache_entries_max, 0, 1 << 24),
            ("standing_max", self.standing_max, 0, MANY),
            ("trace_entries_max", self.trace_entries_max, 0, 64),
            ("digest_threads", self.digest_threads, 1, 64),
            ("upload_threads", self.upload_threads, 1, 64),
            ("ledger_entries_max", self.ledger_entries_max, 1, MANY),
            ("ledger_in_flight_max", self.ledger_in_flight_max, 1, 64),
            (
                "whereabouts_bytes_max",
                self.whereabouts_bytes_max,
                0,
                1 << 28,
            ),
            ("orders_queue_len_max", self.orders_queue_len_max, 1, MANY),
            ("order_results_max", self.order_results_max, 1, MANY),
            ("allowlist_recalls_max", self.allowlist_recalls_max, 1, MANY),
            (
                "control_connections_max",
                self.control_connections_max,
                1,
                256,
            ),
        ];
        let counts = counts.map(|(key, value, min, max)| (key, value as u64, min, max));
        let others = [
            ("link_grace_ms", self.link_grace_ms, 0, 600_000),
            ("scan_time_max_s", self.scan_time_max_s, 1, 86_400),
            ("attempts_max", u64::from(self.attempts_max), 1, 100),
            (
                "standing_deleted_max_s",
                self.standing_deleted_max_s,
                1,
                3600,
            ),
            ("upload_stall_max_s", self.upload_stall_max_s, 1, 3600),
            (
                "allowlist_fetch_spread_s",
                self.allowlist_fetch_spread_s,
                0,
                86_400,
            ),
            (
                "allowlist_bytes_max",
                self.allowlist_bytes_max,
                1 << 10,
                1 << 36,
            ),
            (
                "filter_fetch_spread_s",
                self.filter_fetch_spread_s,
                0,
                86_400,
            ),
            ("filter_bytes_max", self.filter_bytes_max, 1 << 10, 1 << 28),
            (
                "quarantine_bytes_max",
                self.quarantine_bytes_max,
                1 << 20,
                u64::MAX,
            ),
        ];
        for (key, value, min, max) in counts.into_iter().chain(others) {
            if !(min..=max).contains(&value) {
                return Err(UnusableConfig::Limit {
                    key: format!("limits.{key}"),
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

impl AgentConfig {
    /// Reads a file; [`validate`](Self::validate) it then.
    ///
    /// # Errors
    /// It cannot be read, or a key in it is unknown or of another type.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        daemon::config::load(path)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the first key that cannot be used.
    pub fn validate(&self) -> Result<(), UnusableConfig> {
        if self.guard.include.is_empty() {
            return Err(UnusableConfig::NothingGuarded);
        }
        let lists = [
            ("guard.include", &self.guard.include),
            ("guard.exclude", &self.guard.exclude),
            (
                "guard.standing_filesystems",
                &self.guard.standing_filesystems,
            ),
            ("guard.exclude_programs", &self.guard.exclude_programs),
            ("allowlist.files", &self.allowlist.files),
        ];
        for (key, paths) in lists {
            for path in paths {
                check_path(key, path)?;
            }
        }
        check_path("state_dir", &self.state_dir)?;
        check_path("runtime_dir", &self.runtime_dir)?;
        let Allowlist { files, names, .. } = &self.allowlist;
        if !(files.is_empty() && names.is_empty()) && self.allowlist.trusted_keys.is_empty() {
            return Err(UnusableConfig::NoKey);
        }
        for address in &self.appliance.addresses {
            check_address("appliance.addresses", address)?;
        }
        self.enrol.validate()?;
        if let Some(address) = self.metrics.listen
            && !address.ip().is_loopback()
        {
            return Err(UnusableConfig::NotLoopback(address));
        }
        self.limits.validate()
    }

    /// The quarantine.
    #[must_use]
    pub fn quarantine_dir(&self) -> PathBuf {
        self.state_dir.join("quarantine")
    }

    /// Where a list is kept that is fetched from the appliance. Its name may be no file's name.
    #[must_use]
    pub fn fetched_allowlist(&self, name: &str) -> PathBuf {
        let name = blake3::hash(name.as_bytes()).to_hex();
        self.state_dir.join(format!("allowlist-{}", &name[..32]))
    }

    /// Where the appliance's filter is kept.
    #[must_use]
    pub fn filter_file(&self) -> PathBuf {
        self.state_dir.join("filter.pack")
    }

    /// The unix socket on which a running agent is asked.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }
}

fn check_address(key: &'static str, address: &str) -> Result<(), UnusableConfig> {
    let port = address.rsplit_once(':');
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(()),
        _ => Err(UnusableConfig::Address {
            key,
            address: address.to_owned(),
        }),
    }
}

fn check_path(key: &'static str, path: &Path) -> Result<(), UnusableConfig> {
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if path.is_absolute() && path.components().all(plain) {
        return Ok(());
    }
    Err(UnusableConfig::Path {
        key,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let config: AgentConfig =
            daemon::config::parse(text, "agent.toml").map_err(|e| e.to_string())?;
        config.validate().map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_needs_to_be_said() {
        assert_eq!(check(""), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("gaurd = 1", "agent.toml:1:1: gaurd: unknown field"),
            ("[guard]\nincldue = []", "guard.incldue: unknown field"),
            ("[guard]\ninclude = []", "guard.include: nothing is guarded"),
            ("[guard]\nexclude = ['tmp']", "guard.exclude: tmp must be"),
            ("[guard]\ninclude = ['/a/../b']", "guard.include: /a/../b"),
            ("[allowlist]\nfiles = ['a']", "allowlist.files: a must be"),
            ("[allowlist]\nfiles = ['/a']", "trusted_keys: no key"),
            ("[allowlist]\nnames = ['a']", "trusted_keys: no key"),
            (
                "[allowlist]\ntrusted_keys = ['00']",
                "agent.toml:2:16: allowlist.trusted_keys",
            ),
            ("[limits]\nopeners_max = 0", "limits.openers_max: 0 is not"),
            ("[limits]\nopeners_max = -1", "limits.openers_max: invalid"),
            (
                "[enrol]\ncontroller = 'x'",
                "enrol.controller: \"x\" is not",
            ),
            ("[enrol]\ntoken_file = 'x'", "enrol.token_file: x must be"),
            ("[enrol]\nretry_max_s = 0", "enrol.retry_max_s: 0 is not"),
            ("sys_dir = '/tmp'", "sys_dir: unknown field"),
            ("[appliance]\naddresses = ['x']", "\"x\" is not host:port"),
            (
                "[metrics]\nlisten = '0.0.0.0:1'",
                "0.0.0.0:1 is not a loopback",
            ),
            ("[log]\nformat = 'xml'", "log.format: unknown variant"),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
