//! The command line of `lazaret allowlist`.

use std::path::PathBuf;

use allowlist::{Digest, PublicKey, parse_hex};
use clap::Subcommand;

use crate::args::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum AllowlistCommand {
    /// Make a key that lists are signed with, and print its public half.
    Key {
        /// Where to; must not exist.
        file: PathBuf,
        /// Print the public half of a key that exists.
        #[arg(long)]
        show: bool,
    },
    /// Make a list of files that are read and hashed now.
    Build(Box<BuildArgs>),
    /// Make one list of several: what one revokes, none lists.
    Merge(MergeArgs),
    /// Show what one list has and another has not.
    Diff {
        /// The earlier one.
        old: PathBuf,
        /// The later one.
        new: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Show what a list is, whoever signed it.
    Inspect {
        /// The list.
        list: PathBuf,
        /// Say of this BLAKE3 whether it is listed or revoked. May be given more than once.
        #[arg(long, value_name = "BLAKE3", value_parser = digest)]
        digest: Vec<Digest>,
        #[command(flatten)]
        output: Output,
    },
    /// Sign a list anew.
    Sign {
        /// The list.
        list: PathBuf,
        /// The key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Where to. Unset: in the list's own place.
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check a list as an agent would: whole, sorted, signed by a key that is trusted.
    Verify {
        /// The list.
        list: PathBuf,
        /// Public keys that are trusted.
        #[arg(long, required = true, value_name = "KEY")]
        trusted: Vec<PublicKey>,
        #[command(flatten)]
        output: Output,
    },
    /// Take digests from a list for good: no merge brings them back.
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Made {
    /// Where to.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The key to sign with. Unset: the list is not signed, and no agent takes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// What the list is called. Unset: as the one that is there already.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Its serial, which must rise. Unset: one more than that of the one that is there already,
    /// or 1.
    #[arg(long)]
    pub(crate) serial: Option<u64>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// Every regular file below this folder, such as a mounted golden image. Symbolic links are
    /// not followed. May be given more than once, like the other sources.
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Vec<PathBuf>,
    /// The files of dpkg's database below this root, as far as they are as packaged.
    #[arg(long, value_name = "ROOT")]
    pub(crate) dpkg: Vec<PathBuf>,
    /// The files of rpm's SQLite database below this root, as far as they are as packaged.
    #[arg(long, value_name = "ROOT")]
    pub(crate) rpm: Vec<PathBuf>,
    /// Of dpkg and rpm, take this package alone. May be given more than once.
    #[arg(long, value_name = "NAME")]
    pub(crate) package: Vec<String>,
    /// A file of BLAKE3 digests, one a line, as b3sum writes them.
    #[arg(long, value_name = "FILE")]
    pub(crate) digests: Vec<PathBuf>,
    /// The files below this folder whose SHA-256 is in --nsrl or --sha256.
    #[arg(long, value_name = "DIR", requires = "known_by")]
    pub(crate) known: Vec<PathBuf>,
    /// NSRL's RDS version 3, an SQLite database: which of the files in --known are known.
    #[arg(long, value_name = "DB", requires = "known", group = "known_by")]
    pub(crate) nsrl: Vec<PathBuf>,
    /// Leave out what NSRL knows from a package of this type. NSRL means known, not good.
    #[arg(long, value_name = "TYPE", default_values = ["Hacker Tool", "Keyboard Logger",
        "Spyware", "Steganography"])]
    pub(crate) nsrl_without: Vec<String>,
    /// A file of SHA-256 digests, one a line: which of the files in --known are known.
    #[arg(long, value_name = "FILE", requires = "known", group = "known_by")]
    pub(crate) sha256: Vec<PathBuf>,
    /// Enter the file systems that are mounted below a folder, too.
    #[arg(long)]
    pub(crate) cross_file_systems: bool,
    /// Make no list where a file is not as packaged or cannot be read.
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) made: Made,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    /// The lists.
    #[arg(required = true)]
    pub(crate) lists: Vec<PathBuf>,
    /// Take only lists that one of these public keys signed. Unset: any.
    #[arg(long, value_name = "KEY")]
    pub(crate) trusted: Vec<PublicKey>,
    #[command(flatten)]
    pub(crate) made: Made,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// The list.
    pub(crate) list: PathBuf,
    /// The BLAKE3 of a content. May be given more than once.
    #[arg(long, value_name = "BLAKE3", value_parser = digest, required_unless_present = "digests")]
    pub(crate) digest: Vec<Digest>,
    /// A file of them, one a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) digests: Vec<PathBuf>,
    /// The key to sign with. Unset: the list is not signed, and no agent takes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Where to. Unset: in the list's own place.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

fn digest(text: &str) -> Result<Digest, String> {
    parse_hex(text).ok_or_else(|| "a BLAKE3 digest has 64 hexadecimal digits".into())
}
