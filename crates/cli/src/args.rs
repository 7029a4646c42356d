//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use controller::Proof;
use model::{Digest, GuestId, ItemId};

use crate::chunks::ChunksCommand;
use crate::lists::args::AllowlistCommand;

/// Out-of-band antivirus for virtual machines: controller and appliance.
#[derive(Debug, Parser)]
#[command(name = "lazaret", version)]
pub(crate) struct Args {
    /// Configuration file. Unset: /etc/lazaret/lazaret.toml where it exists, else defaults.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// State folder. Unset: as configured, else /var/lib/lazaret.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run controller and appliance in the foreground; makes a CA on its first start.
    Up,
    /// Run an appliance alone; its controllers are those of `fleet.controllers`.
    Appliance,
    /// Check the configuration: says file, line, column and key of what is wrong.
    CheckConfig,
    /// Keys and certificates.
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Make a token with which a guest joins.
    Token(TokenArgs),
    /// Show engines, guests and the generation in force.
    Status(Output),
    /// Show what was found, newest first.
    Detections(DetectionsArgs),
    /// Show which guests hold or held a content, since when.
    Holders(HoldersArgs),
    /// Quarantined files of a guest.
    Quarantine(QuarantineArgs),
    /// Let a content pass although engines call it malicious, or take that back.
    Release(ReleaseArgs),
    /// Load policy, removal and rules again.
    Reload,
    /// Hosts, VMs and appliances: where everything is, and why.
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Lists of known content, which costs agents neither bytes nor time.
    #[command(subcommand)]
    Allowlist(Box<AllowlistCommand>),
    /// Chunks of golden images, so that what machines change of them need not be sent whole.
    #[command(subcommand)]
    Chunks(ChunksCommand),
    /// Write this program's manual pages into a folder.
    #[command(hide = true)]
    Manual {
        /// Where to.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the certificate authority of a new fleet.
    Init,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Hosts, with what is on them.
    Hosts(Live),
    /// VMs, their state and their appliances.
    Vms {
        /// Of this host only.
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        #[command(flatten)]
        live: Live,
    },
    /// Appliances, their load and bound.
    Appliances(Live),
    /// Host → appliance → VMs, as a tree.
    Map(Live),
    /// When guests may do work that nobody waits for: time that is reserved on what they share.
    Turns {
        /// Of this host only.
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        #[command(flatten)]
        live: Live,
    },
    /// Why a VM uses its appliances.
    Why {
        /// Its name, the hypervisor's id, our number, or its guest's id.
        vm: String,
        #[command(flatten)]
        output: Output,
    },
    /// Move the guests of an appliance elsewhere, or those of a host's appliances.
    Drain {
        /// The appliance.
        #[arg(required_unless_present = "host")]
        appliance: Option<String>,
        /// A host: its appliances drain before its VMs leave.
        #[arg(long, value_name = "NAME", conflicts_with = "appliance")]
        host: Option<String>,
        /// Stop that.
        #[arg(long)]
        undo: bool,
    },
    /// Say whether somebody works at VMs, as a desktop broker knows: background work of those comes
    /// after that of others.
    Session(SessionArgs),
    /// What happened, oldest first.
    Events {
        /// At most so many, the latest.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        live: Live,
    },
    /// Pools of machines that join by themselves, and their terms.
    Pools(Live),
    /// Make, change or remove a pool.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Machines that wait for your word.
    Pending(Live),
    /// Let a machine join that waits; it does when it asks again.
    Approve {
        /// As `pending` calls it; its first digits are enough.
        id: String,
        /// In the place of the guests that `pending` names, which are retired then: for a machine
        /// that was installed anew. Without it they stay beside it.
        #[arg(long)]
        replace: bool,
    },
    /// Refuse a machine that waits.
    Deny {
        /// As `pending` calls it; its first digits are enough.
        id: String,
    },
    /// Who belongs to the fleet, and who did.
    Members {
        /// Of this pool only.
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        #[command(flatten)]
        live: Live,
    },
    /// Give a guest neither certificates nor sessions any more.
    Revoke {
        /// Its id.
        #[arg(value_parser = guest)]
        guest: GuestId,
        /// With every guest that came of it by re-keying, and of those.
        #[arg(long)]
        with_copies: bool,
        /// Why, for the record.
        #[arg(long)]
        reason: String,
    },
    /// Make key and certificate for an appliance that runs elsewhere; printed once.
    Identity {
        /// The appliance's name.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct SessionArgs {
    /// The VMs: each by its name, the hypervisor's id, our number, or its guest's id.
    #[arg(required = true, num_args = 1..=1000)]
    pub(crate) vms: Vec<String>,
    #[command(flatten)]
    pub(crate) state: SessionState,
    /// How long that counts, such as 90s, 30m, 2h, 7d. Unset: `controller.session_valid_s`.
    #[arg(long = "for", value_name = "TIME", value_parser = duration, conflicts_with = "clear")]
    pub(crate) valid: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct SessionState {
    /// Somebody works at them.
    #[arg(long)]
    pub(crate) on: bool,
    /// Nobody does.
    #[arg(long)]
    pub(crate) off: bool,
    /// Nobody says any more.
    #[arg(long)]
    pub(crate) clear: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make a pool, or change it for those who join from now on. What is not given is reset.
    Set(PoolArgs),
    /// Remove a pool that has no members; its tokens go, too.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct PoolArgs {
    /// Its name.
    pub(crate) name: String,
    /// What a machine has to show: token, inventory, tpm or approval.
    #[arg(long, default_value = "token", value_parser = proof)]
    pub(crate) proof: Proof,
    /// Its machines do not outlive their users: keys in memory, certificates for 12 hours.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Where its machines may come from, such as 10.1.0.0/16; may be repeated. Unset: from anywhere.
    #[arg(long = "range", value_name = "ADDRESS/PREFIX")]
    pub(crate) ranges: Vec<String>,
    /// With proof by inventory or tpm: VMs with one of these tags. Unset: any.
    #[arg(long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,
    /// With proof by inventory or tpm: VMs in one of these clusters. Unset: any.
    #[arg(long = "cluster", value_name = "NAME")]
    pub(crate) clusters: Vec<String>,
    /// Members at once. 0: any number.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) guests_max: u32,
    /// With proof by tpm: certificates of the CAs that issue those of the VMs' TPMs, PEM, one or
    /// more in a file; may be repeated.
    #[arg(long = "tpm-ca", value_name = "FILE")]
    pub(crate) tpm_cas: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Live {
    /// JSON instead of a table; with --watch, one line each time.
    #[arg(long)]
    pub(crate) json: bool,
    /// Again every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) watch: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    /// Guests that may join with it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,
    /// How long it is valid, such as 90s, 30m, 2h, 7d.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub(crate) valid: Duration,
    /// The pool that its guests belong to.
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,
    /// For this VM alone, and once: its name, the hypervisor's id or our number.
    #[arg(long, value_name = "VM", conflicts_with = "uses")]
    pub(crate) vm: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DetectionsArgs {
    /// At most so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct HoldersArgs {
    /// BLAKE3 of the content, 64 hexadecimal digits.
    pub(crate) digest: Digest,
    /// At most so many.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct QuarantineArgs {
    /// The guest. Unset: the only one that is connected.
    #[arg(long, global = true, value_name = "ID", value_parser = guest)]
    pub(crate) guest: Option<GuestId>,
    #[command(subcommand)]
    pub(crate) command: QuarantineCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// Show what is there.
    List(Output),
    /// Put a file back, with owner, mode, times and attributes.
    Restore {
        /// The item.
        #[arg(value_parser = item)]
        item: ItemId,
        /// Where to. Unset: where it came from.
        #[arg(long, value_name = "PATH")]
        to: Option<PathBuf>,
        /// Release its content first, in the whole fleet; else it is removed again when opened.
        #[arg(long)]
        release: bool,
        /// Why it is released, for the record.
        #[arg(long, requires = "release", default_value = "restored from quarantine")]
        reason: String,
    },
    /// Delete a quarantined file for good.
    Discard {
        /// The item.
        #[arg(value_parser = item)]
        item: ItemId,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReleaseArgs {
    /// BLAKE3 of the content, 64 hexadecimal digits.
    pub(crate) digest: Digest,
    /// Why, for the record.
    #[arg(long, required_unless_present = "revoke")]
    pub(crate) reason: Option<String>,
    /// Take the release back.
    #[arg(long)]
    pub(crate) revoke: bool,
}

fn proof(text: &str) -> Result<Proof, String> {
    text.parse()
}

fn guest(text: &str) -> Result<GuestId, String> {
    GuestId::from_hex(text).ok_or_else(|| "a guest's id has 32 hexadecimal digits".into())
}

fn item(text: &str) -> Result<ItemId, String> {
    ItemId::from_hex(text).ok_or_else(|| "an item's id has 32 hexadecimal digits".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number with its unit, such as 90s, 30m, 2h or 7d".to_owned();
    let split = text.len().checked_sub(1).ok_or_else(wrong)?;
    let (number, unit) = text.split_at_checked(split).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds) {
        Some(seconds) if seconds > 0 && seconds <= u32::MAX.into() => {
            Ok(Duration::from_secs(seconds))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        for wrong in ["", "s", "5", "5é", "-1s", "0s", "99999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_may_come_last() {
        let line = "lazaret quarantine list --json --config x --state y";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        assert!(args.config.is_some() && args.state.is_some());
        assert!(Args::try_parse_from(["lazaret", "release", "zz"]).is_err());
    }
}
